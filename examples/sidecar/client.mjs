// A client of the sidecar, without packages: for Node, and for the main process of Electron.
//
//     node client.mjs glmlite-x86_64-unknown-linux-gnu/glmlite-x86_64-unknown-linux-gnu model.gguf
//     node client.mjs python -m glmlite.serve
//
// Starts the sidecar, waits for the model, streams an answer, stops it, asks again, closes. If this program is killed,
// the sidecar's stdin closes, and the sidecar ends.
import { spawn } from "node:child_process";
import { createInterface } from "node:readline";

export class Sidecar {
  #waiting = new Map(); // id -> what is called with each line about it
  #next = 1;

  // told: is called with each event ({type: "loading", progress: 0.25}, ...).
  constructor(command, args, told = () => {}) {
    this.process = spawn(command, [...args, "--stdio"], { stdio: ["pipe", "pipe", "inherit"], windowsHide: true });
    this.process.stdin.on("error", () => {}); // it has ended, which `exited` tells
    this.exited = new Promise((resolve) => {
      this.process.on("error", (error) => resolve(error.message));
      this.process.on("exit", (code, signal) => resolve(code ?? signal));
    });
    this.ready = new Promise((resolve, reject) => {
      createInterface({ input: this.process.stdout }).on("line", (text) => {
        const line = JSON.parse(text);
        if (line.id !== undefined) return this.#waiting.get(line.id)?.(line);
        if (line.type === "ready") resolve(line);
        if (line.type === "error") reject(new Error(line.error.message));
        told(line);
      });
      this.exited.then((code) => {
        reject(new Error(`the sidecar has ended: ${code}`));
        for (const wake of this.#waiting.values()) wake({ status: 503, done: true });
      });
    });
    this.ready.catch(() => {}); // whoever awaits it hears of it
  }

  // The pieces of an answer. A loop that is left early stops it.
  async *chat(messages, options = {}) {
    const id = this.#next++;
    const lines = [];
    let wake = () => {};
    this.#waiting.set(id, (line) => (lines.push(line), wake()));
    this.#tell({ id, path: "/v1/chat/completions", body: { messages, stream: true, ...options } });
    try {
      for (;;) {
        while (!lines.length) await new Promise((resolve) => (wake = resolve));
        const line = lines.shift();
        if (line.body) throw new Error(line.body.error.message);
        if (line.done) return;
        const text = line.event.choices?.[0]?.delta.content;
        if (text) yield text;
      }
    } finally {
      this.#waiting.delete(id);
      this.#tell({ id, cancel: true });
    }
  }

  // Ends it, wherever it is; resolves with its exit code.
  close() {
    this.process.stdin.end();
    return this.exited;
  }

  #tell(line) {
    if (this.process.stdin.writable) this.process.stdin.write(JSON.stringify(line) + "\n");
  }
}

if (process.argv[1] === import.meta.filename) {
  const [command, ...args] = process.argv.slice(2);
  const sidecar = new Sidecar(command, args, (event) => console.error(JSON.stringify(event)));
  await sidecar.ready;
  const messages = [{ role: "user", content: "What is the capital of France?" }];
  for await (const text of sidecar.chat(messages, { ignore_eos: true })) {
    process.stdout.write(text + "\n");
    break; // which stops it
  }
  for await (const text of sidecar.chat(messages, { temperature: 0 })) process.stdout.write(text);
  process.stdout.write("\n");
  process.exitCode = await sidecar.close();
}
