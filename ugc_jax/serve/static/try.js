// The page to try a captioner: a clip and a question -> /v1/chat/completions -> words as they come.
// All texts of files, models and errors are shown by textContent, never as markup.
"use strict";

const byId = (id) => document.getElementById(id);
const make = (tag, fields = {}, ...inside) => {
  const made = Object.assign(document.createElement(tag), fields);
  made.append(...inside);
  return made;
};

const KEY = "api-key"; // in sessionStorage: of this tab, until it is closed
const WAYS = {
  both: { name: "Sound and picture", clip: {} },
  picture: { name: "Picture alone", clip: { audio: false } },
  sound: { name: "Sound alone", clip: { picture: false } },
};
// Formats of input_audio, by the end of a file's name; other sounds go as video_url.
const SOUNDS = ["wav", "mp3", "flac", "ogg", "opus", "aac", "m4a", "aiff"];
const REST = 2000; // bytes of a request beside its file and its question

let model = null; // of /v1/models
let given = null; // {file} or {link}
let preview = null; // the file's object URL
let running = null; // AbortController of what is under way

// ---- the server ---------------------------------------------------------------------------------

class Fault extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

async function ask(path, body, signal) {
  const headers = {};
  const key = sessionStorage.getItem(KEY);
  if (key) headers.Authorization = `Bearer ${key}`;
  const options = { headers, signal };
  if (body !== undefined) {
    headers["Content-Type"] = "application/json";
    Object.assign(options, { method: "POST", body });
  }
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Fault("the server does not answer, or has closed the connection; try again");
  }
  if (answer.ok) return answer;
  let message = `the server answers ${answer.status}`;
  try {
    message = (await answer.json()).error.message;
  } catch {
    // a proxy's page: its status says enough
  }
  throw new Fault(message, answer.status);
}

// Yields the objects of a stream of server-sent events until its [DONE].
async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    let read;
    try {
      read = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Fault("the connection to the server broke");
    }
    if (read.done) throw new Fault("the server ended the answer early");
    const parts = (text + read.value).split("\n\n");
    text = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new Fault(event.error.message);
      yield event;
    }
  }
}

// ---- the key ------------------------------------------------------------------------------------

async function enter() {
  const fault = byId("key-error");
  fault.textContent = "";
  try {
    const listed = await (await ask("/v1/models")).json();
    model = listed.data[0];
  } catch (error) {
    const hadOne = sessionStorage.getItem(KEY) !== null;
    sessionStorage.removeItem(KEY);
    byId("key").hidden = error.status !== 401;
    byId("tool").hidden = true;
    if (error.status !== 401) byId("model").textContent = error.message;
    else if (hadOne) fault.textContent = error.message;
    byId("key-text").focus();
    return;
  }
  byId("model").textContent = model.id;
  byId("key").hidden = true;
  byId("tool").hidden = false;
  const takes = model.ugc_jax;
  byId("question").placeholder = takes.question;
  const rules = takes.urls
    ? ["This server fetches http and https links to the public internet."]
    : ["This server fetches no links from the network: give the file itself."];
  if (takes.files) rules.push("It reads file:// links below its media folder.");
  byId("link-help").textContent = rules.join(" ");
}

byId("key").addEventListener("submit", (event) => {
  event.preventDefault();
  const box = byId("key-text");
  // Headers hold no other characters; such a key is no key of any server.
  sessionStorage.setItem(KEY, box.value.trim().replace(/[^\x21-\x7e]/g, "?"));
  box.value = "";
  enter().then(() => !byId("tool").hidden && byId("file").focus());
});

// ---- the clip -----------------------------------------------------------------------------------

const megabytes = (bytes) =>
  bytes < 1e6 ? `${Math.ceil(bytes / 1e3)} kB` : `${(bytes / 1e6).toPrecision(3)} MB`;

function kindOf(file) {
  const kind = file.type.split("/")[0];
  // A moving GIF is a clip.
  return file.type === "image/gif" || !["image", "audio"].includes(kind) ? "video" : kind;
}

function show(file) {
  if (preview) URL.revokeObjectURL(preview);
  preview = file ? URL.createObjectURL(file) : null;
  byId("preview").replaceChildren();
  if (!file) return;
  const kind = file.type === "image/gif" ? "image" : kindOf(file);
  const tags = { image: "img", audio: "audio", video: "video" };
  const medium = make(tags[kind], { src: preview });
  if (kind === "image") medium.alt = file.name;
  else Object.assign(medium, { controls: true, loop: true, playsInline: true, ariaLabel: file.name });
  medium.addEventListener("error", () => {
    const text = "This browser cannot show the file; the server may read it nevertheless.";
    byId("preview").replaceChildren(make("p", { className: "muted", textContent: text }));
  });
  byId("preview").append(medium);
}

function take(file) {
  byId("fault").textContent = "";
  const most = model.ugc_jax.upload - REST;
  if ((file.size * 4) / 3 > most) {
    const limit = megabytes((most * 3) / 4);
    byId("fault").textContent =
      `${file.name} has ${megabytes(file.size)}; this server takes files up to ${limit}`;
    return;
  }
  given = { file };
  byId("link").value = "";
  show(file);
  byId("name").textContent = `${file.name}, ${megabytes(file.size)}`;
  choices(kindOf(file));
  byId("start").focus({ preventScroll: true });
}

function choices(kind) {
  for (const box of document.querySelectorAll("fieldset input")) {
    const hasBoth = kind === "video" || box.value === "both";
    box.disabled = !hasBoth;
    if (!hasBoth) box.checked = false;
  }
  if (kind !== "video") document.querySelector("fieldset input[value=both]").checked = true;
}

for (const id of ["file", "camera"]) {
  byId(id).addEventListener("change", (event) => {
    const [file] = event.target.files;
    if (file) take(file);
    event.target.value = ""; // the same file may be chosen again
  });
}

byId("link").addEventListener("input", () => {
  const link = byId("link").value.trim();
  given = link ? { link } : null;
  show(null);
  byId("name").textContent = link ? "A link is not played here: the server fetches it." : "";
  choices("video");
});

const drop = byId("drop");
for (const name of ["dragenter", "dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault(); // else the browser leaves the page for the file
    drop.classList.toggle("over", name === "dragenter" || name === "dragover");
    if (name !== "drop" || !model) return;
    const [file] = event.dataTransfer.files;
    const link = event.dataTransfer.getData("text/uri-list").split("\n")[0].trim();
    if (file) take(file);
    else if (link) {
      byId("link").value = link;
      byId("link").dispatchEvent(new Event("input"));
    }
  });
}

function typeOf(file) {
  return /^[\w.+-]+\/[\w.+-]+$/.test(file.type) ? file.type : "application/octet-stream";
}

function dataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => {
      resolve(`data:${typeOf(file)};base64,${reader.result.slice(reader.result.indexOf(",") + 1)}`);
    };
    reader.onerror = () => reject(new Fault(`${file.name}: cannot be read any more; choose it again`));
    reader.readAsDataURL(file);
  });
}

// The content part of the clip with some URL.
function part({ file, link }, url) {
  const kind = link ? "video" : kindOf(file);
  if (kind === "image") return { type: "image_url", image_url: { url } };
  const format = link ? "" : file.name.split(".").pop().toLowerCase();
  if (kind === "audio" && SOUNDS.includes(format)) {
    const data = url.slice(url.indexOf(",") + 1);
    return { type: "input_audio", input_audio: { data, format } };
  }
  return { type: "video_url", video_url: { url } };
}

// ---- a request ----------------------------------------------------------------------------------

function bodyOf(asked, way, url) {
  const content = [part(asked.given, url)];
  if (asked.question) content.push({ type: "text", text: asked.question });
  const body = { model: model.id, messages: [{ role: "user", content }] };
  if (Object.keys(WAYS[way].clip).length) body.clip = WAYS[way].clip;
  if (asked.colours) Object.assign(body, { evidence: true, evidence_by_time: true });
  return body;
}

const STREAM = { stream: true, stream_options: { include_usage: true } };
const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

// The request as a line of a shell; it reads the file where the line is run.
function curlLine(asked, way) {
  const { file, link } = asked.given;
  const headers = ["-H 'Content-Type: application/json'"];
  if (sessionStorage.getItem(KEY)) headers.push('-H "Authorization: Bearer $UGC_JAX_API_KEY"');
  const to = `curl -N ${location.origin}/v1/chat/completions ${headers.join(" ")}`;
  if (link) return `${to} -d ${quoted(JSON.stringify({ ...bodyOf(asked, way, link), ...STREAM }))}`;
  const mark = "FILE-".concat(Math.random().toString(36).slice(2));
  const url = `data:${typeOf(file)};base64,${mark}`;
  const [before, after] = JSON.stringify({ ...bodyOf(asked, way, url), ...STREAM }).split(mark);
  const content = `base64 < ${quoted(file.name)} | tr -d '\\n'`;
  return `{ printf %s ${quoted(before)}; ${content}; printf %s ${quoted(after)}; } | ${to} --data-binary @-`;
}

// ---- answers ------------------------------------------------------------------------------------

// A caption as a list of spans, one a word with the space after it, so that each can have a colour.
// A word that has not ended is shown, but screen readers are told whole words only.
class Words {
  constructor(place) {
    this.place = place;
    this.tail = make("span", { ariaHidden: "true" });
    this.rest = "";
    this.count = 0;
    place.append(this.tail);
  }

  add(text) {
    // Scripts without spaces have their words parted at punctuation.
    const parts = (this.rest + text).match(/\s*[^\s、。，！？；]*(?:[、。，！？；]+\s*|\s+)|\s*\S+$/gu) ?? [];
    const last = parts.at(-1) ?? "";
    this.rest = /[\s、。，！？；]$/u.test(last) ? "" : (parts.pop() ?? "");
    this.put(parts);
    this.tail.textContent = this.rest;
  }

  put(parts) {
    const spans = parts.map((textContent) => {
      const span = make("span", { className: "word", textContent });
      span.dataset.word = this.count++;
      return span;
    });
    this.tail.before(...spans);
  }

  end() {
    if (this.rest) this.put([this.rest]);
    this.rest = "";
    this.tail.remove();
  }
}

const ENDS = {
  stop: "",
  length: "It was cut off: the most tokens of an answer are reached.",
};

function figures(card, usage, times) {
  const seconds = (times.end - times.start) / 1000;
  const first = (times.first - times.start) / 1000;
  const rows = [
    ["tokens", String(usage.completion_tokens)],
    ["s to the first token", first.toFixed(2)],
    ["s in all", seconds.toFixed(2)],
    ["tokens/s in all", (usage.completion_tokens / seconds).toFixed(1)],
    ["prompt tokens", String(usage.prompt_tokens)],
  ];
  card.querySelector(".figures").replaceChildren(
    ...rows.map(([dt, dd]) =>
      make("div", {}, make("dt", { textContent: dt }), make("dd", { textContent: dd })),
    ),
  );
}

// Gives the words of a whole answer the colours of what they rest on. told: its evidence.
function colour(card, told) {
  if (told.error) {
    card.querySelector(".bad").textContent = told.error;
    return;
  }
  const place = card.querySelector(".caption");
  place.ariaLive = "off"; // it was read out already
  place.replaceChildren(...evidence.text(place.textContent, told));
  place.after(evidence.legend(told));
}

function newAnswer(asked, way) {
  const card = byId("answer").content.firstElementChild.cloneNode(true);
  card.dataset.way = way;
  card.querySelector("h3").textContent = asked.isOne ? "Answer" : WAYS[way].name;
  if (way !== "both") card.querySelector("h3").textContent = WAYS[way].name;
  card.querySelector("pre").textContent = curlLine(asked, way);
  card.querySelector(".request .help").textContent = asked.given.file
    ? "For a shell, in the folder of the file. The answer comes as server-sent events."
    : "For a shell. The answer comes as server-sent events.";
  const said = card.querySelector(".request span");
  card.querySelector(".request button").addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(card.querySelector("pre").textContent);
      said.textContent = "Copied.";
    } catch {
      getSelection().selectAllChildren(card.querySelector("pre"));
      said.textContent = "Selected: copy it with the keyboard.";
    }
  });
  const inputs = card.querySelector(".inputs");
  let isAsked = false;
  inputs.addEventListener("toggle", async () => {
    if (isAsked || !inputs.open) return;
    isAsked = true;
    isAsked = await showInputs(inputs.querySelector(".shown"), asked, way);
  });
  return card;
}

async function stream(card, asked, way, signal) {
  const place = card.querySelector(".caption");
  const words = new Words(place);
  const times = { start: performance.now() };
  place.classList.add("busy");
  try {
    const url = asked.given.link ?? (await dataUrl(asked.given.file));
    const body = JSON.stringify({ ...bodyOf(asked, way, url), ...STREAM });
    let reason = null;
    let told = null;
    for await (const event of events(await ask("/v1/chat/completions", body, signal))) {
      const notes = (event.notes ?? []).map((textContent) => make("li", { textContent }));
      card.querySelector(".notes").append(...notes);
      const [choice] = event.choices;
      if (choice?.delta.content) {
        times.first ??= performance.now();
        words.add(choice.delta.content);
      }
      reason = choice?.finish_reason ?? reason;
      told = choice?.evidence ?? told;
      if (choice?.finish_reason) {
        times.end = performance.now();
        place.classList.remove("busy");
        if (asked.colours) card.querySelector(".end").textContent = "Looking what the words rest on …";
      }
      if (event.usage) figures(card, event.usage, { first: times.end, ...times });
    }
    card.querySelector(".end").textContent = ENDS[reason] ?? "";
    words.end();
    if (told) colour(card, told);
    return true;
  } catch (error) {
    const end = error.name === "AbortError" ? ".end" : ".bad";
    card.querySelector(end).textContent = error.name === "AbortError" ? "Stopped." : error.message;
    if (!(error instanceof Fault) && error.name !== "AbortError") throw error;
    if (error.status === 401) enter();
    return false;
  } finally {
    words.end();
    place.classList.remove("busy");
  }
}

const objectUrl = (text, type) => {
  const bytes = Uint8Array.from(atob(text), (one) => one.charCodeAt(0));
  return URL.createObjectURL(new Blob([bytes], { type }));
};
// An image from an object URL, which is freed when it is shown.
const imageOf = (text, type, fields) => {
  const image = make("img", { src: objectUrl(text, type), ...fields });
  image.addEventListener("load", () => URL.revokeObjectURL(image.src));
  return image;
};

// Returns whether they are shown.
async function showInputs(place, asked, way) {
  place.replaceChildren("Asking the server …");
  let media;
  try {
    const url = asked.given.link ?? (await dataUrl(asked.given.file));
    const answer = await ask("/v1/inputs", JSON.stringify(bodyOf(asked, way, url)));
    media = (await answer.json()).data;
  } catch (error) {
    place.replaceChildren(make("p", { className: "bad", textContent: error.message }));
    return false;
  }
  place.replaceChildren();
  for (const one of media) {
    const parts = [];
    if (one.frames) {
      const rate = one.sample_fps ? ` at ${Number(one.sample_fps.toPrecision(3))} a second` : "";
      const few = one.pictures.length < one.frames ? `, ${one.pictures.length} shown` : "";
      const size = one.size ? `, ${one.size.join(" × ")} pixels` : "";
      parts.push(`${one.frames} ${one.frames === 1 ? "frame" : "frames"}${rate}${size}${few}`);
    }
    if (one.audio_seconds) parts.push(`${one.audio_seconds.toFixed(1)} s of sound`);
    place.append(make("p", { textContent: `${parts.join("; ") || "nothing"}.` }));
    if (one.pictures.length) {
      const items = one.pictures.map((jpeg, at) => {
        const instant = one.instants[one.picture_numbers[at]];
        const time = instant === undefined ? "" : `${instant.toFixed(2)} s`;
        const alt = `Frame ${one.picture_numbers[at] + 1}`;
        return make("li", {}, imageOf(jpeg, "image/jpeg", { alt }), time);
      });
      const list = make("ul", { className: "frames", tabIndex: 0, ariaLabel: "Frames" }, ...items);
      place.append(list);
    }
    if (one.mel) {
      const alt = "The sound as log-mel: time to the right, low frequencies at the bottom";
      place.append(imageOf(one.mel, "image/png", { className: "mel", alt }));
    }
  }
  return true;
}

// ---- asking -------------------------------------------------------------------------------------

async function start() {
  if (running) return;
  const fault = byId("fault");
  fault.textContent = "";
  const ways = [...document.querySelectorAll("fieldset input:checked")].map((box) => box.value);
  if (!given) {
    fault.textContent = "Give a clip first: drop one, or choose a file.";
    byId("file").focus();
    return;
  }
  if (!ways.length) {
    fault.textContent = "Choose what the model gets: sound, picture, or both.";
    return;
  }
  const question = byId("question").value.trim();
  const colours = byId("colours").checked;
  const asked = { given, question, colours, isOne: ways.length === 1 };
  const group = byId("group").content.firstElementChild.cloneNode(true);
  group.querySelector("h2").textContent = given.link ?? given.file.name;
  group.querySelector(".asked").textContent = question || model.ugc_jax.question;
  const cards = ways.map((way) => newAnswer(asked, way));
  byId("results").prepend(group);
  running = new AbortController();
  byId("stop").disabled = false;
  byId("start").disabled = true;
  byId("stop").focus({ preventScroll: true });
  try {
    // One after the other: side by side each would take the time of all.
    for (const [number, card] of cards.entries()) {
      byId("state").textContent = asked.isOne ? "Working …" : `${number + 1} of ${cards.length} …`;
      group.querySelector(".answers").append(card);
      card.scrollIntoView({ block: "nearest" });
      await stream(card, asked, card.dataset.way, running.signal);
      if (running.signal.aborted) break;
    }
  } finally {
    byId("state").textContent = running.signal.aborted ? "Stopped." : "Done.";
    running = null;
    const hadFocus = document.activeElement === byId("stop");
    byId("start").disabled = false;
    byId("stop").disabled = true;
    if (hadFocus || document.activeElement === document.body) {
      byId("start").focus({ preventScroll: true });
    }
  }
}

byId("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  start();
});
byId("stop").addEventListener("click", () => running?.abort());
byId("question").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
  event.preventDefault(); // else it presses Stop, which has the focus by then
  byId("ask").requestSubmit();
});
byId("stop").addEventListener("keydown", (event) => {
  if (event.repeat) event.preventDefault(); // of the key that started it
});

enter();
