// The player, the forms of the stages (autosave, undo, times), adjudication, keys.
// Every text is set as a value or as text, never as markup.
"use strict";
(() => {
  const SAVE_AFTER = 600; // ms after the last key
  const IDLE_AFTER = 60000; // ms without a key or a click, from which on no work is counted
  const meta = (page, name) => page.querySelector(`meta[name="${name}"]`)?.content;
  const account = meta(document, "account");
  let csrf = meta(document, "csrf");
  const all = (root, css) => [...root.querySelectorAll(css)];
  const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);

  async function post(address, body, keepalive = false) {
    const send = () => fetch(address, {
      method: "POST", keepalive, body: JSON.stringify(body),
      headers: { "Content-Type": "application/json", "X-CSRF-Token": csrf },
    });
    let response = await send();
    if (response.status === 403 && !keepalive) {
      // Who logs in again in another tab has a new token; nobody else's is taken.
      const html = await (await fetch("/")).text();
      const page = new DOMParser().parseFromString(html, "text/html");
      if (meta(page, "account") === "") {
        return { ok: false, status: 401, answer: { error: "log in in another tab, then repeat" } };
      }
      if (meta(page, "account") === account && meta(page, "csrf") !== csrf) {
        csrf = meta(page, "csrf");
        response = await send();
      }
    }
    const answer = await response.json().catch(() => ({ error: response.statusText }));
    return { ok: response.ok, status: response.status, answer };
  }

  // ---- player ----------------------------------------------------------------------------------

  function startPlayer(root) {
    const medium = root.querySelector("video, audio");
    if (!medium) return null;
    const stage = root.dataset.stage, times = JSON.parse(root.dataset.times);
    const seconds = Number(root.dataset.seconds);
    const wave = root.querySelector(".wave"), place = root.querySelector(".place");
    const button = (name) => root.querySelector(`[data-do="${name}"]`);
    let from = 0, to = seconds, loops = false;

    const frame = () => {
      let low = 0, high = times.length;
      while (low < high) {
        const middle = (low + high) >> 1;
        if (times[middle] <= medium.currentTime + 1e-3) low = middle + 1; else high = middle;
      }
      return Math.max(0, low - 1);
    };
    const seek = (time) => {
      medium.currentTime = Math.min(Math.max(0, time), seconds);
      show();
    };
    const step = (count) => {
      medium.pause();
      if (stage === "sound" || !times.length) { seek(medium.currentTime + count / 2); return; }
      const number = Math.min(Math.max(0, frame() + count), times.length - 1);
      const next = number + 1 < times.length ? times[number + 1] : times[number] + 0.02;
      seek((times[number] + next) / 2); // within the picture, whatever the browser rounds
    };
    const show = () => {
      const now = medium.currentTime;
      let words = `${now.toFixed(2)} of ${seconds.toFixed(2)} s`;
      if (stage !== "sound" && times.length) words += `, picture ${frame() + 1} of ${times.length}`;
      if (from > 0 || to < seconds) words += `, loop ${from.toFixed(2)} to ${to.toFixed(2)} s`;
      place.textContent = words;
      if (wave) {
        wave.querySelector(".head").style.left = `${(100 * now) / seconds}%`;
        wave.setAttribute("aria-valuenow", now.toFixed(2));
        wave.setAttribute("aria-valuetext", `${now.toFixed(2)} seconds`);
        const range = wave.querySelector(".range");
        range.hidden = !(from > 0 || to < seconds);
        range.style.left = `${(100 * from) / seconds}%`;
        range.style.width = `${(100 * (to - from)) / seconds}%`;
      }
    };
    const press = (name, on) => button(name).setAttribute("aria-pressed", String(on));
    const does = {
      play: () => { if (medium.paused) medium.play().catch(() => {}); else medium.pause(); },
      back: () => step(-1),
      ahead: () => step(1),
      slow: () => {
        medium.playbackRate = medium.playbackRate === 1 ? 0.5 : 1;
        press("slow", medium.playbackRate !== 1);
      },
      loop: () => { loops = !loops; press("loop", loops); },
      from: () => { from = medium.currentTime; if (to <= from) to = seconds; begin(); },
      to: () => { to = medium.currentTime; if (to <= from) from = 0; begin(); },
    };
    const begin = () => { loops = true; press("loop", true); show(); };
    for (const name of Object.keys(does)) button(name).addEventListener("click", does[name]);
    medium.addEventListener("play", () => {
      const tick = () => {
        if (loops && medium.currentTime >= to) medium.currentTime = from;
        show();
        if (!medium.paused) requestAnimationFrame(tick);
      };
      tick();
    });
    medium.addEventListener("ended", () => {
      if (loops) { medium.currentTime = from; medium.play().catch(() => {}); }
    });
    for (const name of ["timeupdate", "seeked", "loadedmetadata", "pause"]) {
      medium.addEventListener(name, show);
    }
    if (wave) {
      const at = (event) => {
        const box = wave.getBoundingClientRect();
        return ((event.clientX - box.left) / box.width) * seconds;
      };
      wave.addEventListener("pointerdown", (event) => {
        wave.setPointerCapture(event.pointerId);
        seek(at(event));
      });
      wave.addEventListener("pointermove", (event) => { if (event.buttons) seek(at(event)); });
      wave.addEventListener("keydown", (event) => {
        const moves = { ArrowLeft: -0.1, ArrowRight: 0.1, PageDown: -1, PageUp: 1 };
        if (event.altKey || event.ctrlKey) return;
        if (event.key in moves) seek(medium.currentTime + moves[event.key]);
        else if (event.key === "Home") seek(0);
        else if (event.key === "End") seek(seconds);
        else if (event.key === " ") does.play();
        else return;
        event.preventDefault();
      });
    }
    for (const one of all(root, ".strip button")) {
      one.addEventListener("click", () => { medium.pause(); seek(Number(one.dataset.time) + 1e-3); });
    }
    show();
    return { does, now: () => medium.currentTime };
  }

  // ---- fields ----------------------------------------------------------------------------------

  const numeric = (text) => {
    const clean = text.trim().replace(",", ".");
    return clean === "" || Number.isNaN(Number(clean)) ? clean : Number(clean);
  };

  // The value of a field as the server reads it; undefined for a choice that was not made.
  function read(field) {
    const kind = field.dataset.kind;
    if (kind === "choice" || kind === "yes_no") {
      const chosen = field.querySelector("input:checked");
      if (!chosen) return undefined;
      return kind === "choice" ? chosen.value : chosen.value === "true";
    }
    if (kind === "line" || kind === "text") return field.querySelector("input, textarea").value;
    const rows = all(field, ".rows > .row");
    if (kind === "lines") {
      return rows.map((row) => row.querySelector("input").value).filter((text) => text.trim());
    }
    return rows.map((row) => {
      const value = {};
      for (const input of all(row, "[data-part]")) {
        const name = input.dataset.part;
        if (name === "start" || name === "end") value[name] = numeric(input.value) === "" ? null : numeric(input.value);
        else if (name === "count") value[name] = numeric(input.value) === "" ? 1 : numeric(input.value);
        else value[name] = input.value;
      }
      return value;
    }).filter((value) => (value.what ?? value.name).trim());
  }

  function write(field, value) {
    const kind = field.dataset.kind;
    if (kind === "choice" || kind === "yes_no") {
      for (const input of all(field, "input")) input.checked = input.value === String(value);
    } else if (kind === "line" || kind === "text") {
      field.querySelector("input, textarea").value = value ?? "";
    } else {
      field.querySelector(".rows").replaceChildren();
      for (const item of value ?? []) {
        const row = addRow(field);
        if (kind === "lines") row.querySelector("input").value = item;
        else for (const input of all(row, "[data-part]")) input.value = item[input.dataset.part] ?? "";
      }
    }
  }

  function addRow(field) {
    const row = field.querySelector("template").content.firstElementChild.cloneNode(true);
    field.querySelector(".rows").append(row);
    return row;
  }

  const fieldsOf = (root) => all(root, "[data-field]");
  function readAll(root) {
    const value = {};
    for (const field of fieldsOf(root)) {
      const one = read(field);
      if (one !== undefined) value[field.dataset.field] = one;
    }
    return value;
  }
  function writeAll(root, value) {
    for (const field of fieldsOf(root)) write(field, value[field.dataset.field]);
  }
  // Marks the field that a message of the server begins with.
  function point(root, name) {
    for (const field of fieldsOf(root)) field.classList.toggle("wrong", field.dataset.field === name);
    const field = fieldsOf(root).find((one) => one.dataset.field === name);
    if (field) field.querySelector("input, textarea, button").focus();
  }

  function startRows(root, changed) {
    root.addEventListener("click", (event) => {
      const add = event.target.closest("[data-add]"), remove = event.target.closest("[data-remove]");
      if (add) {
        addRow(add.closest("[data-field]")).querySelector("input").focus();
      } else if (remove) {
        const field = remove.closest("[data-field]");
        remove.closest(".row").remove();
        field.querySelector("[data-add]").focus();
        changed();
      }
    });
  }

  // ---- a stage's form --------------------------------------------------------------------------

  function startForm(form) {
    const { work, stage, who } = form.dataset;
    const address = `/api/works/${work}/${stage}`, key = `annotate ${who} ${work} ${stage}`;
    const status = form.querySelector(".saved");
    if (!status) return null; // it is only shown
    const undo = form.querySelector("[data-undo-button]"), redo = form.querySelector("[data-redo-button]");
    const seconds = JSON.parse(form.dataset.seconds);
    let version = Number(form.dataset.version), saved = readAll(form);
    let timer = 0, running = null, stopped = false;
    const ours = new Set(); // what this form, also on an earlier visit, has sent

    const say = (text, bad = false) => {
      status.textContent = text;
      status.classList.toggle("bad", bad);
    };
    const keep = () => {
      const state = { version, value: readAll(form), sent: [...ours].slice(-20) };
      localStorage.setItem(key, JSON.stringify(state));
    };
    const buttons = (answer) => {
      undo.disabled = !answer.can_undo;
      redo.disabled = !answer.can_redo;
    };
    const took = (answer, value) => {
      version = answer.version;
      saved = value;
      buttons(answer);
      if (same(readAll(form), saved)) localStorage.removeItem(key);
    };
    const failed = (result) => {
      if (result.status === 401) say("Your session has ended: log in in another tab, then go on here; your text is kept.", true);
      else if (result.status === 409) { stopped = true; say(`${result.answer.error}.`, true); }
      else say(`Not saved: ${result.answer.error}`, true);
    };

    async function send(kind, keepalive = false) {
      const value = readAll(form);
      ours.add(JSON.stringify(value));
      keep();
      let result;
      try {
        result = await post(address, { base: version, value, seconds, kind }, keepalive);
      } catch {
        say("Not saved: the server is not reached; your text is kept, and sent again.", true);
        timer = setTimeout(save, 5000);
        return null;
      }
      if (result.status === 409 && ours.has(JSON.stringify(result.answer.value)) && result.answer.version > version) {
        version = result.answer.version; // our own save, whose answer did not reach us
        saved = result.answer.value;
        return send(kind, keepalive);
      }
      if (!result.ok) {
        failed(result);
        if (result.answer.field) point(form, result.answer.field);
        return null;
      }
      took(result.answer, value);
      say(`Saved, version ${version}`);
      return result.answer;
    }
    // One request at a time: each names the version of the one before.
    async function one(task) {
      while (running) await running;
      running = task();
      try { return await running; } finally { running = null; }
    }
    const save = () => {
      clearTimeout(timer);
      return one(async () => (stopped || same(readAll(form), saved) ? null : send("autosave")));
    };
    const changed = () => {
      keep(); // also after a conflict: it is offered when the page is opened again
      if (stopped) return;
      say("…");
      clearTimeout(timer);
      timer = setTimeout(save, SAVE_AFTER);
    };
    async function step(back) {
      await save();
      await one(async () => {
        const result = await post(`${address}/step`, { base: version, back }).catch(() => null);
        if (!result) return say("The server is not reached.", true);
        if (!result.ok) return failed(result);
        writeAll(form, result.answer.value);
        took(result.answer, readAll(form));
        say(`${back ? "Undone" : "Redone"}, version ${version}`);
      });
    }
    form.addEventListener("input", changed);
    startRows(form, changed);
    undo.addEventListener("click", () => step(true));
    redo.addEventListener("click", () => step(false));
    buttons({ can_undo: form.dataset.undo === "true", can_redo: form.dataset.redo === "true" });
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      clearTimeout(timer);
      one(async () => {
        if (stopped) return;
        const answer = await send("submit");
        if (!answer) return;
        localStorage.removeItem(key);
        if (answer.next) location.assign(answer.next);
        else location.reload();
      });
    });
    addEventListener("pagehide", () => {
      if (!stopped && !running && !same(readAll(form), saved)) send("autosave", true);
    });
    restore();

    // Text that was typed and not acknowledged, from an earlier visit of this page.
    function restore() {
      const left = JSON.parse(localStorage.getItem(key) ?? "null");
      if (!left || same(left.value, saved)) { localStorage.removeItem(key); return; }
      for (const one of left.sent) ours.add(one); // they may arrive even after this page was made
      if (left.version === version || ours.has(JSON.stringify(saved))) {
        writeAll(form, left.value);
        changed();
        return;
      }
      const note = document.createElement("p"), use = document.createElement("button");
      note.className = "note";
      note.textContent = "This browser has text of this form that was not saved. ";
      use.type = "button";
      use.textContent = "Put it into the form";
      use.addEventListener("click", () => { writeAll(form, left.value); note.remove(); changed(); });
      note.append(use);
      form.prepend(note);
    }

    // Seconds of work by field: those between a field's focus and the next one's, without pauses.
    let current = null, since = 0, active = performance.now();
    const count = () => {
      const now = performance.now();
      if (current && !document.hidden && now - active < IDLE_AFTER) {
        seconds[current] = Math.round(((seconds[current] ?? 0) + (now - since) / 1000) * 10) / 10;
      }
      since = now;
    };
    form.addEventListener("focusin", (event) => {
      count();
      current = event.target.closest("[data-field]")?.dataset.field ?? current;
    });
    for (const name of ["keydown", "pointerdown"]) {
      addEventListener(name, () => { count(); active = performance.now(); });
    }
    document.addEventListener("visibilitychange", () => { since = performance.now(); });
    return { form, step };
  }

  // ---- adjudication ----------------------------------------------------------------------------

  function startDecision(form) {
    const status = form.querySelector(".saved");
    startRows(form, () => { touched = true; });
    document.addEventListener("click", (event) => {
      const use = event.target.closest("[data-use]");
      if (!use) return;
      const [stage, name] = use.dataset.use.split(" ");
      const field = form.querySelector(`[data-stage="${stage}"] [data-field="${name}"]`);
      write(field, JSON.parse(use.dataset.value));
      field.classList.add("used");
      touched = true;
      status.textContent = `${field.querySelector("legend").firstChild.textContent.trim()} taken over`;
    });
    let sent = false, touched = false;
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      const values = {};
      for (const part of all(form, "[data-stage]")) values[part.dataset.stage] = readAll(part);
      const body = { base: Number(form.dataset.base), values };
      const result = await post(`/api/clips/${form.dataset.clip}/decide`, body).catch(() => null);
      if (result && result.ok) { sent = true; location.assign(result.answer.next); return; }
      status.textContent = result ? `Not saved: ${result.answer.error}` : "The server is not reached.";
      status.classList.add("bad");
    });
    form.addEventListener("input", () => { touched = true; });
    addEventListener("beforeunload", (event) => { if (touched && !sent) event.preventDefault(); });
  }

  // ---- keys ------------------------------------------------------------------------------------

  function startKeys(player, forms) {
    const dialog = document.getElementById("keys");
    const main = forms.find((one) => one && "main" in one.form.dataset);
    const help = () => { if (dialog.open) dialog.close(); else dialog.showModal(); };
    const open = (id) => {
      const details = document.getElementById(id);
      if (!details) return;
      details.open = !details.open;
      ((details.open && details.querySelector("select")) || details.querySelector("summary")).focus();
    };
    const field = () => document.activeElement.closest("[data-field]");
    const list = () => {
      if (field()?.querySelector("[data-add]")) return field();
      return main?.form.querySelector("[data-add]")?.closest("[data-field]");
    };
    const near = () => forms.find((one) => one && one.form.contains(document.activeElement)) ?? main;
    const keys = {
      KeyP: () => player?.does.play(), Comma: () => player?.does.back(),
      Period: () => player?.does.ahead(), KeyS: () => player?.does.slow(),
      KeyL: () => player?.does.loop(), KeyA: () => player?.does.from(),
      KeyB: () => player?.does.to(),
      KeyN: () => list()?.querySelector("[data-add]").click(),
      KeyX: () => document.activeElement.closest(".row")?.querySelector("[data-remove]").click(),
      KeyT: () => {
        const input = document.activeElement;
        if (!player || !input.matches("input[data-time]")) return;
        input.value = player.now().toFixed(2);
        input.dispatchEvent(new Event("input", { bubbles: true }));
      },
      KeyU: () => near()?.step(true), KeyR: () => near()?.step(false),
      KeyG: () => open("guide"), KeyK: () => open("skipping"), KeyH: help,
    };
    addEventListener("keydown", (event) => {
      if (event.ctrlKey && event.key === "Enter") {
        const form = document.activeElement.closest("form") ?? main?.form ?? document.querySelector("form.decide");
        form?.requestSubmit();
        event.preventDefault();
      } else if (event.altKey && !event.ctrlKey && !event.metaKey) {
        const digit = /^Digit([1-9])$/.exec(event.code);
        if (digit && main) {
          const chosen = fieldsOf(main.form)[Number(digit[1]) - 1];
          chosen?.querySelector("input:checked, input, textarea, button[data-add]")?.focus();
        } else if (keys[event.code] && dialog) keys[event.code]();
        else return;
        event.preventDefault();
      }
    });
    document.querySelector("[data-help]")?.addEventListener("click", help);
  }

  const guide = document.getElementById("guide");
  if (guide) { // beside the form where there is room, until somebody closes it
    guide.open = innerWidth > 900 && localStorage.getItem("guide") !== "closed";
    guide.addEventListener("toggle", () => {
      localStorage.setItem("guide", guide.open ? "open" : "closed");
    });
  }
  const players = all(document, "[data-player]").map(startPlayer);
  const forms = all(document, "form.stage").map(startForm);
  for (const form of all(document, "form.decide")) startDecision(form);
  startKeys(players[0] ?? null, forms);
})();
