// The browser of clips. All texts of models are set as text, never as HTML.
(() => {
  const data = JSON.parse(document.getElementById('data').textContent);
  const control = name => document.getElementById(name);
  const pictures = new Map(Object.entries(data.pictures));
  const PAGE = 10; // clips
  const main = data.tasks.find(one => one.name === data.main);
  const FRESH = {
    task: main?.name ?? '', result: main?.results[0] ?? 0, by: 'score', sort: 'worst', show: 'all',
    min: '', max: '', q: '', whole: false, differ: true, page: 1,
  };
  const WORDS = ['task', 'result', 'by', 'sort', 'show', 'min', 'max', 'q'];
  let state = { ...FRESH };

  // ---- elements ---------------------------------------------------------------------------------

  function options(select, pairs, chosen) {
    select.replaceChildren(...pairs.map(([value, text]) => element('option', { value }, text)));
    select.value = chosen;
  }

  function swatch(number) {
    const style = `--colour: var(--series-${number % data.colours + 1})`;
    return element('span', { class: 'swatch', style, 'aria-hidden': 'true' });
  }

  /** `text` with what is searched for marked. */
  function marked(text) {
    const sought = state.q.toLowerCase();
    const lower = text.toLowerCase();
    if (!sought || lower.length !== text.length) return [text];
    const parts = [];
    let from = 0;
    for (let at = lower.indexOf(sought); at >= 0; at = lower.indexOf(sought, from)) {
      parts.push(text.slice(from, at), element('mark', {}, text.slice(at, at + sought.length)));
      from = at + sought.length;
    }
    return [...parts, text.slice(from)];
  }

  // ---- what is chosen ---------------------------------------------------------------------------

  const task = () => data.tasks.find(one => one.name === state.task);
  const figures = () => [['score', task().score], ...task().columns];
  const value = (clip, number = state.result) => clip.of[number]?.[state.by] ?? null;
  const number = text => text === '' || !Number.isFinite(Number(text)) ? null : Number(text);

  /** The result that the chosen one is set against: the first other of the task, or null. */
  const other = () => task().results.find(one => one !== state.result) ?? null;

  function difference(clip) {
    if (other() === null || value(clip) === null || value(clip, other()) === null) return null;
    return value(clip) - value(clip, other());
  }

  function searchable(clip) {
    if (clip.found === undefined) {
      const told = clip.of.flatMap(one => one && [one.prediction, one.note, one.failure]);
      clip.found = [clip.id, clip.reference, ...told].filter(Boolean).join('\n').toLowerCase();
    }
    return clip.found;
  }

  const isWrong = outcome => outcome?.said !== undefined && outcome.said !== outcome.answer;

  /** Value of the "show" control -> [its text, whether an outcome is shown]. */
  function shows() {
    const kinds = new Map([['all', ['all clips', () => true]]]);
    const outcomes = task().clips.map(clip => clip.of[state.result]).filter(Boolean);
    const add = (key, text, test) => {
      const count = outcomes.filter(test).length;
      if (count) kinds.set(key, [`${text} (${count})`, test]);
    };
    add('failed', 'failed', one => one?.failure !== undefined);
    for (const kind of new Set(outcomes.map(one => one.failure).filter(Boolean))) {
      add(`failed:${kind}`, `failed: ${kind}`, one => one?.failure === kind);
    }
    add('wrong', 'wrong option', isWrong);
    for (const one of outcomes.filter(isWrong)) {
      const same = it => isWrong(it) && it.answer === one.answer && it.said === one.said;
      const key = `${one.answer}→${one.said}`;
      if (!kinds.has(key)) add(key, `${one.answer}, said ${one.said}`, same);
    }
    for (const name of new Set(outcomes.flatMap(one => one.wrong ?? []))) {
      add(`wrong:${name}`, `wrong: ${name}`, one => one?.wrong?.includes(name));
    }
    return kinds;
  }

  /** 1, or -1 for an error: less of it is better. */
  const direction = () => (task().lower.includes(state.by) ? -1 : 1);
  const ORDERS = {
    worst: (a, b) => direction() * (value(a) - value(b)),
    best: (a, b) => direction() * (value(b) - value(a)),
    difference: (a, b) => Math.abs(difference(b)) - Math.abs(difference(a)),
  };

  /** The clips to show, in order; those without a value come last. */
  function selection(kinds) {
    const sought = state.q.toLowerCase();
    const [low, high] = [number(state.min), number(state.max)];
    const keeps = kinds.get(state.show)[1];
    const chosen = task().clips.filter(clip => {
      const score = value(clip);
      return keeps(clip.of[state.result]) && searchable(clip).includes(sought)
        && (low === null || (score !== null && score >= low))
        && (high === null || (score !== null && score <= high));
    });
    const byId = (a, b) => a.id < b.id ? -1 : a.id > b.id ? 1 : 0;
    if (state.sort === 'id') return chosen.sort(byId);
    const key = state.sort === 'difference' ? difference : value;
    const known = chosen.filter(clip => key(clip) !== null);
    const unknown = chosen.filter(clip => key(clip) === null);
    return [...known.sort((a, b) => ORDERS[state.sort](a, b) || byId(a, b)), ...unknown.sort(byId)];
  }

  // ---- a clip -----------------------------------------------------------------------------------

  const shown = score => score.toFixed(task().digits);

  function media(clip) {
    const picture = pictures.get(clip.video ?? clip.id);
    return picture ? player.media(clip.video ?? clip.id, picture) : null;
  }

  function said(outcome) {
    if (outcome.said === undefined) return null;
    const verdict = isWrong(outcome) ? ['bad', 'wrong'] : ['right', 'right'];
    const right = isWrong(outcome) ? `; the answer is ${outcome.answer}` : '';
    return element('p', { class: `said ${verdict[0]}` }, `${verdict[1]}: said ${outcome.said}${right}`);
  }

  /** The value that clips are ordered by, and by how much it is above the chosen result's. */
  function figure(clip, place) {
    const made = element('span', { class: 'score' });
    const [low, high] = [value(clip), value(clip, place)];
    if (state.by !== 'score') {
      const [, title] = figures().find(([key]) => key === state.by);
      made.append(element('span', { class: 'by' }, title), ' ');
    }
    if (place !== state.result && low !== null && high !== null) {
      const text = `${high < low ? '−' : '+'}${shown(Math.abs(high - low))}`;
      const title = `against ${data.results[state.result]}`;
      made.append(element('span', { class: 'delta', title }, text), ' ');
    }
    if (high !== null) made.append(shown(high));
    else if (clip.of[place].score !== undefined) made.append('–');
    else made.append(element('span', { class: 'bad' }, 'failed'));
    return made;
  }

  /** The prediction: what is searched for, else the evidence of its words, else the words that the
   * reference does not have. */
  function predicted(clip, outcome) {
    const text = outcome.prediction ?? '';
    if (state.q) return marked(text);
    if (outcome.evidence) return evidence.text(text, outcome.evidence);
    if (!state.differ || !clip.reference) return marked(text);
    return differing.parts(text, clip.reference, 'extra', 'not in the reference');
  }

  /** The reference, with the words that the chosen result does not have. */
  function expected(clip) {
    const text = clip.reference ?? 'not known';
    const prediction = clip.of[state.result]?.prediction;
    if (state.q || !state.differ || !clip.reference || !prediction) return marked(text);
    return differing.parts(text, prediction, 'lacking', `not in ${data.results[state.result]}`);
  }

  function column(clip, place) {
    const outcome = clip.of[place];
    const who = element('span', { class: 'who' }, swatch(place), data.results[place]);
    if (!outcome) {
      const nothing = element('p', { class: 'parts' }, 'not evaluated');
      return element('div', { class: 'text' }, element('h4', {}, who), nothing);
    }
    const parts = figures().filter(([key]) => key !== state.by && outcome[key] !== undefined)
      .map(([key, title]) => element('span', {}, `${title} ${shown(outcome[key])}`));
    const note = outcome.note ?? null;
    return element('div', { class: 'text', 'data-result': place },
      element('h4', {}, who, figure(clip, place)),
      parts.length ? element('p', { class: 'parts' }, ...parts) : null,
      outcome.failure === undefined ? null
        : element('p', { class: 'said bad' }, `no score: ${outcome.failure}`),
      said(outcome),
      element('p', { class: 'body' }, ...predicted(clip, outcome)),
      outcome.evidence && !state.q ? evidence.legend(outcome.evidence) : null,
      note === null ? null : element('p', { class: 'judge' }, ...marked(note)));
  }

  function card(clip) {
    const address = `#${new URLSearchParams({ task: state.task, q: clip.id })}`;
    const link = element('a', { href: address, title: 'Link to this clip' }, ...marked(clip.id));
    const seconds = pictures.get(clip.video ?? clip.id)?.seconds;
    const folded = task().results.filter(place => data.folded.includes(place));
    const open = task().results.filter(place => !folded.includes(place));
    const box = element('article', { class: 'clip', 'aria-label': `Clip ${clip.id}` },
      element('header', {},
        element('h3', {}, link),
        seconds ? element('span', { class: 'muted' }, `${seconds.toFixed(1)} s`) : null),
      media(clip),
      element('div', { class: 'texts' },
        element('div', { class: 'text reference' },
          element('h4', {}, element('span', { class: 'who' }, 'Reference')),
          element('p', { class: 'body' }, ...expected(clip))),
        ...open.map(place => column(clip, place))),
      folded.length ? folds(clip, folded) : null);
    if (pictures.has(clip.video ?? clip.id)) box.classList.add('pictured');
    if (state.whole) box.classList.add('whole');
    return box;
  }

  /** The texts of results that are folded away. */
  function folds(clip, places) {
    return element('details', { class: 'folded' },
      element('summary', {}, places.map(place => data.results[place]).join(', ')),
      element('div', { class: 'texts' }, ...places.map(place => column(clip, place))));
  }

  /** A button that opens cut texts, where there are any; asked for when the card is in the page. */
  function addMore(box) {
    const bodies = [...box.querySelectorAll('.body')];
    if (!bodies.some(body => body.scrollHeight > body.clientHeight + 2)) return;
    const attributes = { type: 'button', class: 'more', 'aria-expanded': 'false' };
    const button = element('button', attributes, 'Show whole texts');
    button.addEventListener('click', () => {
      const open = box.classList.toggle('whole');
      button.setAttribute('aria-expanded', open);
      button.textContent = open ? 'Show less' : 'Show whole texts';
    });
    box.append(button);
  }

  // ---- the page ---------------------------------------------------------------------------------

  function fill(kinds) {
    const names = task().results.map(place => [place, data.results[place]]);
    const orders = [['worst', 'worst first'], ['best', 'best first'], ['id', 'id']];
    if (other() !== null) orders.push(['difference', `difference to ${data.results[other()]}`]);
    options(control('task'), data.tasks.map(one => [one.name, one.title]), state.task);
    options(control('result'), names, state.result);
    options(control('by'), figures(), state.by);
    options(control('sort'), orders, state.sort);
    options(control('show'), [...kinds].map(([key, [text]]) => [key, text]), state.show);
    for (const name of ['min', 'max', 'q']) {
      if (control(name).value !== state[name]) control(name).value = state[name];
    }
    control('whole').checked = state.whole;
    control('differ').checked = state.differ;
  }

  function pages(count) {
    const last = Math.max(1, Math.ceil(count / PAGE));
    state.page = Math.min(state.page, last);
    for (const place of document.querySelectorAll('.pages')) {
      const button = (text, label, to) => {
        const made = element('button', { type: 'button', 'aria-label': label }, text);
        made.disabled = to < 1 || to > last;
        made.addEventListener('click', () => {
          change({ page: to });
          refocus(label);
        });
        return made;
      };
      place.replaceChildren(
        button('Previous', 'Previous page', state.page - 1),
        element('span', { class: 'muted' }, `${state.page} of ${last}`),
        button('Next', 'Next page', state.page + 1));
    }
  }

  /** To the top of the clips, with the focus on the new button of the label if it does anything. */
  function refocus(label) {
    const place = document.querySelector('.pages');
    const button = place.querySelector(`[aria-label="${label}"]:enabled`);
    (button ?? place).focus({ preventScroll: true });
    control('count').scrollIntoView({ block: 'start' });
  }

  function render() {
    const kinds = shows();
    if (!kinds.has(state.show)) state.show = 'all';
    fill(kinds);
    const clips = selection(kinds);
    pages(clips.length);
    control('count').textContent = `${clips.length} of ${task().clips.length} clips`;
    const first = (state.page - 1) * PAGE;
    const cards = clips.slice(first, first + PAGE).map(card);
    const none = element('p', { class: 'none' }, 'No clip is like this.');
    control('list').replaceChildren(...(cards.length ? cards : [none]));
    if (!state.whole) cards.forEach(addMore);
  }

  /** Take `part` into the state, as far as it makes sense there, and show it. */
  function change(part, keepsPage = 'page' in part) {
    const next = { ...state, ...part };
    if (!data.tasks.some(one => one.name === next.task)) next.task = FRESH.task;
    state = next;
    if (!task().results.includes(state.result)) state.result = task().results[0];
    if (!figures().some(([key]) => key === state.by)) state.by = 'score';
    if (!Object.hasOwn(ORDERS, state.sort) && state.sort !== 'id') state.sort = FRESH.sort;
    if (state.sort === 'difference' && other() === null) state.sort = FRESH.sort;
    for (const bound of ['min', 'max']) if (number(state[bound]) === null) state[bound] = '';
    if (!keepsPage || !(state.page >= 1)) state.page = 1;
    render();
    history.replaceState(null, '', `#${address()}`);
  }

  /** The state as the part of the address after #, without what is as at the beginning. */
  function address() {
    const words = new URLSearchParams({ task: state.task });
    for (const [name, word] of Object.entries(state)) {
      if (name !== 'task' && word !== FRESH[name]) words.set(name, Number(word === true) || word);
    }
    return words;
  }

  /** The state that an address asks for; null for the anchor of a section. */
  function asked() {
    const hash = location.hash.slice(1);
    if (!hash.includes('=')) return null;
    const words = new URLSearchParams(hash);
    const page = Math.trunc(Number(words.get('page') ?? 1));
    const part = { whole: words.get('whole') === '1', differ: words.get('differ') !== 'false', page };
    for (const name of WORDS) part[name] = words.get(name) ?? FRESH[name];
    for (const bound of ['min', 'max']) part[bound] = part[bound].trim();
    part.result = Number(part.result);
    return part;
  }

  function follow() {
    const part = asked();
    if (part === null) return;
    change(part);
    control('clips').scrollIntoView();
  }

  if (!data.tasks.some(one => one.clips.length)) {
    control('list').append(element('p', { class: 'none' }, 'These results hold no clips.'));
    return;
  }
  for (const name of WORDS) {
    const { tagName } = control(name);
    control(name).addEventListener(tagName === 'SELECT' ? 'change' : 'input', () => {
      const chosen = control(name).value;
      change({ [name]: name === 'result' ? Number(chosen) : chosen });
    });
  }
  control('whole').addEventListener('change', () => {
    change({ whole: control('whole').checked, page: state.page });
  });
  control('differ').addEventListener('change', () => {
    change({ differ: control('differ').checked, page: state.page });
  });
  control('reset').addEventListener('click', () => change({ ...FRESH, task: state.task }));
  control('controls').addEventListener('submit', event => event.preventDefault());
  window.addEventListener('hashchange', follow);
  for (const hidden of document.querySelectorAll('#controls, .pager')) hidden.hidden = false;
  if (asked() === null) render();
  else follow();
})();
