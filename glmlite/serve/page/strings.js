/** The page's texts, English and Chinese side by side; `{name}` is filled in by `t`. */
const TABLE = {
  // Around the conversation
  skip: ["Skip to the message field", "跳到输入框"],
  conversations: ["Conversations", "对话"],
  newChat: ["New chat", "新对话"],
  search: ["Search", "搜索"],
  searchPlaceholder: ["Search conversations, or begin a new one", "搜索对话，或开始新对话"],
  searchNothing: ["Nothing found.", "没有找到。"],
  today: ["Today", "今天"],
  yesterday: ["Yesterday", "昨天"],
  thisWeek: ["Last 7 days", "最近 7 天"],
  earlier: ["Earlier", "更早"],
  noConversations: ["Your conversations stay in this browser.", "对话只保存在此浏览器中。"],
  rename: ["Rename", "重命名"],
  remove: ["Delete", "删除"],
  removed: ["“{title}” is deleted.", "已删除“{title}”。"],
  undo: ["Undo", "撤销"],
  exportOne: ["Export", "导出"],
  openSide: ["Show conversations", "显示对话列表"],
  closeSide: ["Hide conversations", "隐藏对话列表"],
  model: ["Model", "模型"],
  theme: ["Appearance: {name}", "外观：{name}"],
  theme_system: ["as the system", "跟随系统"],
  theme_light: ["light", "浅色"],
  theme_dark: ["dark", "深色"],
  language: ["中文", "English"],
  context: ["Context: {used} of {total} tokens", "上下文：{used} / {total} 个 token"],
  toEnd: ["To the end", "到底部"],

  // Welcome
  welcome: ["What is on your mind?", "今天想聊些什么？"],
  welcomeSub: [
    "What you write goes to the model on this server, and nowhere else.",
    "你写的内容只会发给这台服务器上的模型。",
  ],
  idea1: ["What is the capital of France?", "法国的首都是哪里？"],
  idea2: ["Explain recursion with a small Python example.", "用一个 Python 小例子解释递归。"],
  idea3: ["Write four lines about the first snow.", "写四句关于初雪的诗。"],

  // Writing
  message: ["Message", "消息"],
  messagePlaceholder: ["Ask anything", "有什么想问的？"],
  hint: ["Enter sends, Shift+Enter begins a line", "Enter 发送，Shift+Enter 换行"],
  send: ["Send", "发送"],
  stop: ["Stop (Esc)", "停止 (Esc)"],
  attach: ["Add text files", "添加文本文件"],
  addPicture: ["Add pictures", "添加图片"],
  drop: ["Drop files here", "将文件拖到这里"],
  fileRemove: ["Remove {name}", "移除 {name}"],
  fileNotText: ["{name} is not a text file.", "{name} 不是文本文件。"],
  fileTooLong: ["{name} is longer than {limit}.", "{name} 超过 {limit}。"],
  picture: ["picture", "图片"],
  pictureUnseen: [
    "{name} sees no pictures. A vision model does, served with its mmproj file.",
    "{name} 看不到图片。请使用视觉模型，并同时加载它的 mmproj 文件。",
  ],
  pictureTooMany: ["A message can have {n} pictures.", "一条消息最多 {n} 张图片。"],
  pictureBad: ["{name} is no picture that this browser can read, or too large.", "浏览器无法读取图片 {name}，或图片过大。"],

  // Messages
  messages: ["Messages", "消息"],
  you: ["You", "你"],
  assistant: ["Assistant", "助手"],
  copy: ["Copy", "复制"],
  copied: ["Copied", "已复制"],
  copyCode: ["Copy code", "复制代码"],
  edit: ["Edit and resend", "编辑并重新发送"],
  cancel: ["Cancel", "取消"],
  regenerate: ["Answer again", "重新回答"],
  previous: ["Previous alternative", "上一个版本"],
  next: ["Next alternative", "下一个版本"],
  branch: ["{at} / {of}", "{at} / {of}"],
  branchLabel: ["Alternative {at} of {of}", "第 {at} 个版本，共 {of} 个"],
  answering: ["Answering", "正在回答"],
  answered: ["The answer is complete.", "回答完毕。"],
  reading: ["Reading the prompt, {done} of {total}", "正在读取提示，{done} / {total}"],
  thinking: ["Thinking", "正在思考"],
  thought: ["Thought", "思考过程"],
  thoughtFor: ["Thought for {time}", "思考了 {time}"],
  seconds: ["{n} s", "{n} 秒"],
  minutes: ["{m} min {s} s", "{m} 分 {s} 秒"],
  speed: ["{n} tokens/s", "{n} token/秒"],
  tokens: ["{n} tokens", "{n} 个 token"],
  promptTokens: ["prompt {n}", "提示 {n}"],
  cached: ["{n} kept from before", "其中 {n} 沿用"],
  stopped: ["Stopped.", "已停止。"],
  cutByLength: ["The answer reached its length limit.", "回答已达长度上限。"],
  toolCall: ["Calls {name}", "调用 {name}"],
  toolResult: ["Result of {name}", "{name} 的结果"],
  resultPlaceholder: ["Enter what {name} gives back", "输入 {name} 返回的结果"],
  sendResult: ["Send the result", "发送结果"],
  sendResults: ["Send the results", "发送结果"],
  imageNotLoaded: ["image", "图片"],

  // Settings
  settings: ["Settings", "设置"],
  close: ["Close", "关闭"],
  thisChat: ["This conversation", "本次对话"],
  systemPrompt: ["System prompt", "系统提示"],
  systemPlaceholder: ["How the model should behave", "模型应当如何表现"],
  thinkingMode: ["Thinking", "思考"],
  thinking_default: ["as the model does", "由模型决定"],
  thinking_on: ["on", "开启"],
  thinking_off: ["off", "关闭"],
  sampling: ["Sampling", "采样"],
  samplingHelp: ["An empty field takes the value that it shows, the server's.", "留空即采用框中显示的服务器默认值。"],
  temperature: ["Temperature", "温度"],
  top_p: ["Top p", "Top p"],
  top_k: ["Top k", "Top k"],
  min_p: ["Min p", "Min p"],
  repetition_penalty: ["Repetition penalty", "重复惩罚"],
  presence_penalty: ["Presence penalty", "存在惩罚"],
  frequency_penalty: ["Frequency penalty", "频率惩罚"],
  max_tokens: ["Longest answer", "最长回答"],
  seed: ["Seed", "随机种子"],
  noLimit: ["no limit", "不限"],
  random: ["random", "随机"],
  tools: ["Tools", "工具"],
  toolsHelp: [
    "A JSON list of functions that the model may call. You enter the results yourself.",
    "模型可以调用的函数，JSON 列表；结果由你手动填写。",
  ],
  toolsBad: ["This is not a JSON list of functions: {why}", "不是函数的 JSON 列表：{why}"],
  toolsNoName: ["each needs a name", "每个函数都要有 name"],
  toolsNoList: ["it should begin with [", "应以 [ 开头"],
  useForNew: ["Use for new chats", "用于新对话"],
  usedForNew: ["New chats begin with these settings.", "新对话将采用这些设置。"],
  reset: ["Back to the defaults", "恢复默认"],
  thisBrowser: ["This browser", "本浏览器"],
  apiKey: ["API key", "API 密钥"],
  apiKeyHelp: ["Needed only if the server was started with one.", "仅当服务器启动时设置了密钥才需要。"],
  remember: ["Keep it in this browser", "在此浏览器中记住"],
  appearance: ["Appearance", "外观"],
  languageLabel: ["Language", "语言"],
  exportAll: ["Export all conversations", "导出全部对话"],
  import: ["Import", "导入"],
  imported: ["Imported: {n}. Already here: {same}.", "已导入 {n} 个，已存在 {same} 个。"],
  importBad: ["{name} is no export of this page: {why}", "{name} 不是本页导出的文件：{why}"],
  about: ["glmlite {version}", "glmlite {version}"],

  // What can go wrong
  notKept: ["This browser keeps no data: conversations end with this tab.", "此浏览器不保存数据，关闭标签页后对话将丢失。"],
  notSaved: ["The conversation could not be saved: {why}", "对话未能保存：{why}"],
  retry: ["Try again", "重试"],
  enterKey: ["Enter the key", "填写密钥"],
  serverSays: ["The server says: {detail}", "服务器：{detail}"],
  gone: ["The server does not answer. Is glmlite serve still running?", "服务器没有响应。glmlite serve 还在运行吗？"],
  key: ["The server asks for an API key, and this one is not it.", "服务器要求 API 密钥，当前密钥无效。"],
  keyMissing: ["The server asks for an API key.", "服务器要求 API 密钥。"],
  refused: ["The server did not allow this.", "服务器拒绝了请求。"],
  missing: ["The server has no such model.", "服务器上没有这个模型。"],
  busy: ["The server is busy. Try again in a moment.", "服务器繁忙，请稍后再试。"],
  busyFor: ["The server is busy. Try again in {n} s.", "服务器繁忙，请在 {n} 秒后再试。"],
  overflow: [
    "The conversation does not fit into the model's context. Begin a new one, or shorten a message by editing it.",
    "对话超出了模型的上下文长度。请开始新对话，或编辑缩短某条消息。",
  ],
  large: ["The message is larger than the server takes.", "消息超过了服务器允许的大小。"],
  loading: ["The model is still being loaded. Try again in a moment.", "模型仍在加载，请稍后再试。"],
  bad: ["The server could not use this request.", "服务器无法处理此请求。"],
  server: ["The server met an error.", "服务器出错。"],
  cut: ["The connection broke before the answer was complete.", "回答完成之前连接中断。"],
};

export const LANGUAGES = ["en", "zh"];

let column = 0;

/** The language of the page, "en" or "zh". */
export function language() {
  return LANGUAGES[column];
}

/** Takes a language tag such as "zh-CN"; whatever is not Chinese gets English. */
export function setLanguage(tag) {
  column = /^zh\b/i.test(tag) ? 1 : 0;
  document.documentElement.lang = column ? "zh-CN" : "en";
}

/** The text of this name in the page's language, with {words} filled in. */
export function t(name, words = {}) {
  return TABLE[name][column].replace(/\{(\w+)\}/g, (all, word) => words[word] ?? all);
}

/** Whether the table has this name. */
export function has(name) {
  return Object.hasOwn(TABLE, name);
}

/** A count, with the digits grouped. */
export function count(n) {
  return Math.round(n).toLocaleString(language());
}

/** A span of time in words; short ones with one decimal. */
export function duration(ms) {
  const s = ms / 1000;
  if (s < 10) return t("seconds", { n: s.toFixed(1) });
  if (s < 60) return t("seconds", { n: Math.round(s) });
  return t("minutes", { m: Math.floor(s / 60), s: Math.round(s) % 60 });
}

/** Writes the texts of everything below `root` that names one: data-t for its text, data-t-label for its name
 * (aria-label and tooltip), data-t-placeholder for a field's placeholder. */
export function label(root) {
  for (const e of root.querySelectorAll("[data-t]")) e.textContent = t(e.dataset.t);
  for (const e of root.querySelectorAll("[data-t-label]")) {
    e.setAttribute("aria-label", t(e.dataset.tLabel));
    e.title = t(e.dataset.tLabel);
  }
  for (const e of root.querySelectorAll("[data-t-placeholder]")) e.placeholder = t(e.dataset.tPlaceholder);
}
