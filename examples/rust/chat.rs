//! One question, one answer, over the C API, without a crate.
//!
//!     rustc chat.rs -L ../../build-c -C link-args=-Wl,-rpath,../../build-c
//!     ./chat model.glmlite "Why is the sky blue?" [SEED]

use std::ffi::{c_char, c_int, c_void, CStr, CString};
use std::io::Write;
use std::ptr::{null, null_mut};

#[repr(C)]
struct Error {
    status: i32,
    message: [c_char; 1020],
}

#[repr(C)]
struct Message {
    role: *const c_char,
    text: *const c_char,
    length: usize,
}

type OnToken = extern "C" fn(*mut c_void, i32, *const c_char, usize) -> c_int;
type OnProgress = extern "C" fn(*mut c_void, u64, u64) -> c_int;

#[repr(C)]
struct Params {
    size: usize,
    max_tokens: i32,
    ignore_eos: i32,
    seed: u64,
    temperature: f64,
    top_p: f64,
    min_p: f64,
    repetition_penalty: f64,
    presence_penalty: f64,
    frequency_penalty: f64,
    top_k: i32,
    penalty_window: i32,
    stop_ids: *const i32,
    stop_count: usize,
    on_token: Option<OnToken>,
    on_progress: Option<OnProgress>,
    user: *mut c_void,
    cancel: *const c_void,
}

#[link(name = "glmlite")]
extern "C" {
    fn glmlite_open(path: *const c_char, options: *const c_void, model: *mut *mut c_void, error: *mut Error) -> c_int;
    fn glmlite_close(model: *mut c_void);
    fn glmlite_get_params(model: *const c_void, params: *mut Params, error: *mut Error) -> c_int;
    fn glmlite_session_new(model: *mut c_void, session: *mut *mut c_void, error: *mut Error) -> c_int;
    fn glmlite_session_free(session: *mut c_void);
    fn glmlite_chat(
        session: *mut c_void,
        messages: *const Message,
        count: usize,
        params: *const Params,
        result: *mut c_void,
        error: *mut Error,
    ) -> c_int;
}

/// `user` is the text so far.
extern "C" fn on_token(user: *mut c_void, _token: i32, text: *const c_char, length: usize) -> c_int {
    let (answer, piece) = unsafe { (&mut *user.cast::<Vec<u8>>(), std::slice::from_raw_parts(text.cast(), length)) };
    answer.extend_from_slice(piece);
    let mut out = std::io::stdout();
    (out.write_all(piece).and_then(|()| out.flush()).is_err()) as c_int // nobody reads any more: the answer ends
}

struct Model(*mut c_void, *mut c_void);

impl Drop for Model {
    fn drop(&mut self) {
        unsafe {
            glmlite_session_free(self.1);
            glmlite_close(self.0);
        }
    }
}

fn main() -> Result<(), String> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, path, question, rest @ ..] = &arguments[..] else {
        return Err("chat MODEL.glmlite QUESTION [SEED]".into());
    };
    let mut error = Error { status: 0, message: [0; 1020] };
    let path = CString::new(path.as_str()).map_err(|e| e.to_string())?;
    let mut params: Params = unsafe { std::mem::zeroed() };
    params.size = size_of::<Params>();
    let mut answer = Vec::<u8>::new();
    let mut model = Model(null_mut(), null_mut());
    let role = CString::new("user").unwrap();
    let message = Message { role: role.as_ptr(), text: question.as_ptr().cast(), length: question.len() };
    let status = unsafe {
        let mut status = glmlite_open(path.as_ptr(), null(), &mut model.0, &mut error);
        if status == 0 {
            status = glmlite_get_params(model.0, &mut params, &mut error);
        }
        if status == 0 {
            status = glmlite_session_new(model.0, &mut model.1, &mut error);
        }
        if let Some(seed) = rest.first() {
            params.seed = seed.parse().map_err(|_| "SEED: expected a number")?;
        }
        params.max_tokens = 200;
        params.on_token = Some(on_token);
        params.user = (&mut answer as *mut Vec<u8>).cast();
        if status == 0 {
            status = glmlite_chat(model.1, &message, 1, &params, null_mut(), &mut error);
        }
        status
    };
    println!();
    if status == 0 {
        return Ok(());
    }
    Err(unsafe { CStr::from_ptr(error.message.as_ptr()) }.to_string_lossy().into_owned())
}
