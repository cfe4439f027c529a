// The completions of GRPO runs: a step, its groups, and in a group the completions by reward.
(() => {
  const { runs } = JSON.parse(document.getElementById('data').textContent);
  const having = runs.filter(run => run.steps.length);
  const list = document.getElementById('groups');
  if (!having.length || !list) return;
  const PAGE = 6; // groups
  const control = name => document.getElementById(name);

  const figure = value => value === undefined ? 'none' : value.toFixed(3);
  const signed = value => `${value < 0 ? '−' : '+'}${Math.abs(value).toFixed(2)}`;

  function row(one, most) {
    const rewards = Object.entries(one).filter(([name]) => name.startsWith('rewards/'))
      .map(([name, value]) => `${name.slice(8)} ${figure(value)}`);
    const kind = one.advantage > 0 ? 'good' : one.advantage < 0 ? 'bad' : 'muted';
    const bar = element('span', { class: `advantage ${kind}`, 'aria-hidden': 'true' });
    bar.style.width = `${100 * Math.abs(one.advantage ?? 0) / most}%`;
    const cut = one.finish_reason === 'length' ? ', cut off' : '';
    return element('li', {},
      element('p', { class: 'parts' },
        element('strong', {}, `reward ${figure(one.reward)}`),
        element('span', { class: kind }, one.advantage === undefined ? 'left out'
          : `advantage ${signed(one.advantage)}`),
        ...rewards.map(text => element('span', {}, text)),
        element('span', {}, `${one.tokens} tokens${cut}`)),
      element('div', { class: 'scale' }, bar),
      element('p', { class: 'completion' }, one.completion));
  }

  function box(group, open) {
    const sorted = [...group.completions].sort((a, b) => (b.reward ?? -1e9) - (a.reward ?? -1e9));
    const rewards = sorted.map(one => one.reward).filter(one => one !== undefined);
    const most = Math.max(1e-6, ...sorted.map(one => Math.abs(one.advantage ?? 0)));
    const range = rewards.length ? `${figure(rewards.at(-1))} to ${figure(rewards[0])}` : 'none';
    const made = element('details', { class: 'group' },
      element('summary', {}, `${group.clip} `,
        element('span', { class: 'muted' }, `${sorted.length} completions, rewards ${range}`)),
      group.prompt ? element('p', { class: 'muted measure' }, group.prompt) : null,
      element('ol', { class: 'completions' }, ...sorted.map(one => row(one, most))));
    made.open = open;
    return made;
  }

  let page = 0;
  function render() {
    const run = having[Number(control('run').value)];
    const step = run.steps[Number(control('step').value)];
    const last = Math.max(0, Math.ceil(step.groups.length / PAGE) - 1);
    page = Math.min(page, last);
    const shown = step.groups.slice(page * PAGE, (page + 1) * PAGE);
    control('group-count').textContent = `step ${step.step}: ${step.groups.length} groups`
      + (last ? `, page ${page + 1} of ${last + 1}` : '');
    control('group-before').disabled = page === 0;
    control('group-after').disabled = page === last;
    list.replaceChildren(...shown.map((group, place) => box(group, place === 0)));
  }

  function steps() {
    const run = having[Number(control('run').value)];
    control('step').replaceChildren(...run.steps.map(({ step }, value) =>
      element('option', { value }, `step ${step}`)));
    control('step').value = run.steps.length - 1;
    page = 0;
    render();
  }

  control('run').replaceChildren(...having.map(({ name }, value) => element('option', { value }, name)));
  control('run').addEventListener('change', steps);
  control('step').addEventListener('change', () => { page = 0; render(); });
  control('group-before').addEventListener('click', () => { page -= 1; render(); });
  control('group-after').addEventListener('click', () => { page += 1; render(); });
  control('completions').hidden = false;
  steps();
})();
