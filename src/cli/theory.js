/* The page of offdiag theory and offdiag theory sweep. */
'use strict';
const phaseColours = ['#e7f5ff', '#fff3bf', '#d3f9d8', '#f3e8fd'];
const phaseNames = ['I: a learns the strong feature', 'II: substitution', 'III: b turns to its own feature', 'IV: the head returns'];

/* Shade each phase from where the one before ends. */
const shading = {
  id: 'shading',
  beforeDatasetsDraw(chart, args, options) {
    if (!options.phases) return;
    const {ctx, chartArea: area, scales: {x}} = chart;
    let from = x.min;
    options.phases.forEach((end, i) => {
      if (end === null || end <= from) return;
      const left = Math.max(area.left, x.getPixelForValue(from)), right = Math.min(area.right, x.getPixelForValue(Math.min(end, x.max)));
      if (right > left) {
        ctx.fillStyle = phaseColours[i];
        ctx.fillRect(left, area.top, right - left, area.bottom - area.top);
      }
      from = end;
    });
  }
};

function chart(parent, title, low, steps, datasets, range, phases) {
  datasets.forEach(d => { d.data = d.values.map((y, i) => ({x: steps[i], y})); });
  return lineChart(parent, title, {
    low, datasets, plugins: [shading], options: {shading: {phases}}, title: x => 'step ' + Math.round(x),
    x: {type: 'logarithmic', min: steps[0], max: steps[steps.length - 1],
        ticks: {callback: v => Number.isInteger(Math.log10(v)) ? short(v) : '', maxRotation: 0, autoSkip: false}, title: {display: !low, text: 'step'}},
    y: Object.assign({afterBuildTicks: axis => { if (range.at) axis.ticks = range.at.map(value => ({value})); }}, range)
  });
}

const line = (label, values, i, dash) => ({label, values, borderColor: colourOf(i), borderDash: dash ? [5, 4] : []});

function pathCard(parent, run, path) {
  const card = add(parent, 'div', undefined, 'card'), k = run.config.strengths.length, m = run.config.neurons;
  add(card, 'h3', 'Head ' + run.variant + ', seed ' + path.seed + ': ' + path.outcome.replace('_', ' on '));
  if (path.first >= 0 && path.other >= 0) add(card, 'p', 'a is neuron ' + (path.first + 1) + ', b is neuron ' + (path.other + 1), 'soft');
  const lines = path.features.map((v, n) => line('w' + (Math.floor(n / k) + 1) + ' with v' + (n % k + 1), v, n));
  const head = [];
  path.head.forEach((v, n) => { if (m === 1 || Math.floor(n / m) !== n % m) head.push(line('E' + (Math.floor(n / m) + 1) + (n % m + 1), v, head.length)); });
  return [chart(card, 'Features: cosines', false, run.steps, lines, {min: -1.05, max: 1.05, at: [-1, -.5, 0, .5, 1]}, path.phases),
          chart(card, 'Head: entries outside the diagonal', false, run.steps, head, {suggestedMin: -.3, suggestedMax: .3}, path.phases),
          chart(card, 'Loss', true, run.steps, [line('', path.loss, 7)], {suggestedMin: 0}, path.phases)];
}

/* three: series of the low, middle and high quantile. */
const quantiles = (label, three, i) => band(label, [], [], [], i).map((d, n) => Object.assign(d, {values: three[[0, 2, 1][n]]}));

function bandsCard(parent, run) {
  const card = add(parent, 'div', undefined, 'card'), k = run.config.strengths.length;
  add(card, 'h3', 'Head ' + run.variant + ': ' + run.both_learned + ' of ' + run.seeds + ' seeds learn both');
  const features = run.bands.slice(0, 2 * k).flatMap((b, n) => quantiles((n < k ? 'a' : 'b') + ' with v' + (n % k + 1), b, n));
  chart(card, 'Features: |cosine|', false, run.steps, features, {min: 0, max: 1.05, at: [0, .5, 1]}, run.phases);
  chart(card, 'Head', false, run.steps, [...quantiles('|E_ba|', run.bands[2 * k], 0), ...quantiles('|E_ab|', run.bands[2 * k + 1], 1)],
        {min: 0, suggestedMax: .35}, run.phases);
  chart(card, 'Loss', true, run.steps, quantiles('', run.bands[2 * k + 2], 7), {suggestedMin: 0}, run.phases);
}

function setting(c) {
  return 'Features of strength ' + c.strengths.join(', ') + '; ' + c.neurons + ' neurons; dimension ' + c.dimension + '; ' + c.patches +
    ' patches, ' + c.feature_patches + ' with the feature; noise ' + c.noise + '; ' +
    (c.level === 'sampled' ? 'sampled data, batch ' + c.batch + (c.antithetic ? ' x 4' : '') : 'expected gradients') + '; ' +
    c.steps.toLocaleString('en') + ' steps; eta ' + c.eta + ', eta_E ' + c.eta_head + '; ' + c.start + ' start; seeds from ' + c.seed + '.';
}

function showRuns(runs) {
  const asked = runs[runs.length - 1];
  add(main, 'h1', 'Two neurons, two features, one head');
  add(main, 'p', setting(asked.config), 'soft');
  table(main, [['head', 'learned both', '95 % interval', 'collapsed on v1', 'mixed', 'unlearned', 'diverged']].concat(runs.map(r =>
    [r.variant, r.both_learned + ' of ' + r.seeds, r.both_interval.map(percent).join(' to '), r.outcomes.collapse_v1, r.outcomes.mixed,
     r.outcomes.unlearned, r.outcomes.diverged])));
  const keys = add(main, 'p', 'Phases:', 'soft');
  phaseNames.forEach((n, i) => {
    const key = add(keys, 'span', undefined, 'phase');
    add(key, 'span', undefined, 'key').style.background = phaseColours[i];
    key.append(n);
    keys.append(' ');
  });
  add(main, 'h2', 'One seed');
  const form = add(main, 'p', 'Seed ', 'soft'), select = add(form, 'select');
  select.setAttribute('aria-label', 'seed');
  asked.paths.forEach((p, i) => { add(select, 'option', p.seed + ' (' + p.outcome + ')').value = i; });
  const first = asked.paths.findIndex(p => p.outcome === 'both');
  select.value = Math.max(first, 0);
  const pair = add(main, 'div', undefined, 'pair');
  let live = [];
  const show = () => {
    live.forEach(c => c.destroy());
    pair.replaceChildren();
    live = runs.flatMap(r => pathCard(pair, r, r.paths[select.value]));
  };
  select.addEventListener('change', show);
  show();
  add(main, 'h2', 'All seeds');
  add(main, 'p', 'Median, and 10 % to 90 % of the seeds as a band. Neuron a is the first to learn the strong feature, b the other; phases end at their medians.', 'soft');
  const all = add(main, 'div', undefined, 'pair');
  runs.forEach(r => bandsCard(all, r));
}

function showSweep(s) {
  add(main, 'h1', 'The share of seeds that learn both features');
  add(main, 'p', 'Head ' + s.variant + ', ' + s.seeds + ' seeds a cell. ' + setting(s.config) + ' The two axes override what is said here.', 'soft');
  const map = table(main, [[s.y.name + ' \u2193  ' + s.x.name + ' \u2192', ...s.x.values]], 'map');
  s.y.values.forEach((y, i) => {
    const tr = add(map, 'tr');
    add(tr, 'th', y);
    s.x.values.forEach((x, j) => {
      const r = s.rows[i * s.x.values.length + j], td = add(tr, 'td', r.both_share.toFixed(2)), t = r.both_share;
      td.style.background = 'rgb(' + [255 - 244 * t, 255 - 148 * t, 255 - 52 * t].map(Math.round).join(',') + ')';
      td.style.color = t > .55 ? '#fff' : '#1c2024';
      td.title = r.both_learned + ' of ' + s.seeds + ', 95 % interval ' + r.both_interval.map(percent).join(' to ');
    });
  });
}

document.title = 'offdiag theory';
if (data.kind === 'sweep') showSweep(data); else showRuns(data.runs);
