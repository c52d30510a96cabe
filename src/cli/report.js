/* The pages of offdiag report and offdiag study. */
'use strict';

const known = x => typeof x === 'number';
const digits = (x, n) => known(x) ? x.toFixed(n) : '\u2013';
const asPercent = x => known(x) ? (100 * x).toFixed(2) + ' %' : '\u2013';
const whole = x => known(x) ? Math.round(x).toLocaleString('en') : '\u2013';
const grid = parent => add(parent, 'div', undefined, 'pair');

/* What is drawn over steps: key in metrics.jsonl, title, factor. */
const curves = [
  ['loss', 'Loss', 1],
  ['knn', 'kNN accuracy, %', 100],
  ['online_linear', 'Online linear classifier, %', 100],
  ['effective_rank', 'Effective rank of the projections', 1],
  ['z_std', 'Spread of the projections (z_std)', 1],
  ['offdiag_norm', 'Size of the head outside its diagonal, |offdiag(E)|', 1],
];

const look = i => ({borderColor: colourOf(i), borderDash: i < colours.length ? [] : i < 2 * colours.length ? [6, 3] : [2, 3]});

function points(xs, ys, factor) {
  const list = [];
  ys.forEach((y, i) => { if (known(y) && known(xs[i])) list.push({x: xs[i], y: factor * y}); });
  return list;
}

/* Lines over training steps, in a card of its own; nothing without data. */
function overSteps(parent, title, datasets) {
  const shown = datasets.filter(d => d.data.length);
  if (!shown.length) return;
  const last = Math.max(...shown.map(d => d.data[d.data.length - 1].x));
  lineChart(add(parent, 'div', undefined, 'card'), title, {
    datasets, title: x => 'step ' + Math.round(x).toLocaleString('en'),
    x: {type: 'linear', min: 0, max: last, ticks: {callback: v => short(v), maxRotation: 0, maxTicksLimit: 7}, title: {display: true, text: 'step'}},
    y: {afterFit: axis => { axis.width = 52; }}
  });
}

/* ---- spectra and heads ---------------------------------------------------------------------------------------------- */

/* Value i of those kept has the rank that it had among all. */
function spectrumPoints(s) {
  const n = s.values.length;
  return points(s.values.map((v, i) => n > 1 ? 1 + Math.floor(i * (s.count - 1) / (n - 1)) : 1), s.values, 1);
}

/* lines: {name, spectra}; a slider goes through the runs. */
function spectrumCard(parent, lines, slider) {
  const shown = lines.filter(l => l.spectra.length);
  if (!shown.length) return;
  const card = add(parent, 'div', undefined, 'card');
  const most = Math.max(...shown.map(l => Math.max(...l.spectra.map(s => s.count))));
  const at = (spectra, share) => spectra[Math.round(share * (spectra.length - 1))];
  const datasets = lines.map((l, i) => Object.assign({label: l.name, data: l.spectra.length ? spectrumPoints(at(l.spectra, 1)) : []}, look(i)));
  const drawn = lineChart(card, 'Singular values of the projections', {
    datasets, title: x => 'value ' + Math.round(x),
    x: {type: 'linear', min: 1, max: Math.max(most, 2), ticks: {precision: 0, maxTicksLimit: 8, maxRotation: 0}, title: {display: true, text: 'rank of the value'}},
    y: {title: {display: true, text: 'log10, largest = 0'}, afterFit: axis => { axis.width = 58; }}
  });
  if (!slider || !shown.some(l => l.spectra.length > 1)) return;
  const form = add(card, 'label', 'Share of each run: ', 'soft'), input = add(form, 'input'), said = add(form, 'span', ' the end');
  Object.assign(input, {type: 'range', min: 0, max: 100, value: 100});
  input.addEventListener('input', () => {
    lines.forEach((l, i) => { if (l.spectra.length) drawn.data.datasets[i].data = spectrumPoints(at(l.spectra, input.value / 100)); });
    said.textContent = input.value === '100' ? ' the end' : ' ' + input.value + ' %' + (shown.length === 1 ? ', step ' + whole(at(shown[0].spectra, input.value / 100).step) : '');
    drawn.update('none');
  });
}

const warm = [178, 24, 43], cold = [33, 102, 172];
function heat(x) {
  const end = x < 0 ? cold : warm, share = Math.min(Math.abs(x) / 127, 1);
  return end.map(c => Math.round(255 + (c - 255) * share));
}

function headCard(parent, name, head) {
  const card = add(parent, 'div', undefined, 'card'), n = head.cells;
  add(card, 'h3', name);
  const canvas = add(card, 'canvas', undefined, 'heat');
  canvas.width = canvas.height = n;
  canvas.setAttribute('role', 'img');
  canvas.setAttribute('aria-label', 'Heat map of the head of ' + name);
  const context = canvas.getContext('2d'), image = context.createImageData(n, n);
  head.values.forEach((v, i) => { image.data.set([...(Math.floor(i / n) === i % n && head.block === 1 ? [150, 150, 150] : heat(v)), 255], 4 * i); });
  context.putImageData(image, 0, 0);
  add(card, 'p', (head.kind || 'head') + ', ' + head.size + ' x ' + head.size + (head.block > 1 ? ', a cell is the largest entry of ' + head.block + ' x ' + head.block : '') +
    '. Rows: inputs, columns: outputs. Blue \u2212' + head.scale.toPrecision(3) + ', white 0, red ' + head.scale.toPrecision(3) +
    (head.block === 1 ? '; grey: the diagonal.' : '.'), 'soft');
}

/* ---- settings ------------------------------------------------------------------------------------------------------- */

const settingText = x => x === undefined ? '\u2013' : typeof x === 'string' ? x : JSON.stringify(x);

/* rows of all options, and of those that differ: [name, a run's value, ...] */
function settings(parent, runs) {
  const keys = [...new Set(runs.flatMap(r => Object.keys(r.options)))];
  const row = key => [key, ...runs.map(r => settingText(Object.prototype.hasOwnProperty.call(r.options, key) ? r.options[key] : undefined))];
  const head = ['setting', ...runs.map(r => r.name)];
  const differ = keys.filter(k => !['out', 'resume', 'quiet'].includes(k) && new Set(row(k).slice(1)).size > 1);
  if (!keys.length) return;
  add(parent, 'h2', 'Settings');
  if (runs.length > 1) {
    if (differ.length) table(parent, [head, ...differ.map(row)]);
    else add(parent, 'p', 'The runs have the same settings.', 'soft');
  }
  const all = add(parent, 'details');
  all.open = runs.length === 1;
  add(all, 'summary', 'All settings');
  table(all, [head, ...keys.map(row)]);
}

/* ---- offdiag report ------------------------------------------------------------------------------------------------- */

const figureHead = ['head', 'steps', 'kNN before', 'kNN', 'effective rank', 'z_std', '|offdiag| peak', '|offdiag| end'];
const figureTexts = f => [asPercent(f.knn_before), asPercent(f.knn), digits(f.effective_rank, 1), digits(f.z_std, 4), digits(f.offdiag_peak, 3), digits(f.offdiag_end, 3)];

function showRuns(runs) {
  document.title = runs.length === 1 ? runs[0].name + ' \u2013 offdiag' : 'offdiag runs';
  add(main, 'h1', runs.length === 1 ? runs[0].name : runs.length + ' runs');
  const devices = [...new Set(runs.map(r => r.device).filter(d => d))];
  if (devices.length) add(main, 'p', 'Device: ' + devices.join('; '), 'soft');
  runs.forEach(r => r.notes.forEach(n => add(main, 'p', r.name + ': ' + n, 'soft')));
  table(main, [['run', ...figureHead, 'images/s'], ...runs.map(r => [r.name, settingText(r.options.head),
    whole(r.figures.step) + (r.figures.steps > r.figures.step ? ' of ' + whole(r.figures.steps) : ''), ...figureTexts(r.figures), whole(r.figures.images_per_s)])]);
  add(main, 'h2', 'Curves');
  const box = grid(main), several = runs.length > 1;
  const dataset = (r, i, data) => Object.assign({label: several ? r.name : '', data, pointRadius: data.length < 3 ? 3 : 0}, look(i));
  curves.forEach(([key, title, factor]) => overSteps(box, title, runs.map((r, i) => {
    const data = key === 'loss' && r.losses.step.length ? points(r.losses.step, r.losses.loss, 1) : points(r.epochs.step, r.epochs[key], factor);
    if (key === 'knn' && known(r.figures.knn_before)) data.unshift({x: 0, y: factor * r.figures.knn_before});
    return dataset(r, i, data);
  })));
  spectrumCard(box, runs.map(r => ({name: several ? r.name : '', spectra: r.spectra})), true);
  const heads = runs.filter(r => r.head);
  if (heads.length) {
    add(main, 'h2', 'Heads at the last checkpoint');
    const cards = grid(main);
    heads.forEach(r => headCard(cards, r.name, r.head));
  }
  settings(main, runs);
}

/* ---- offdiag study -------------------------------------------------------------------------------------------------- */

function spread(x, factor, n, unit) {
  if (!known(x.mean)) return '\u2013';
  return (factor * x.mean).toFixed(n) + (known(x.std) ? ' \u00b1 ' + (factor * x.std).toFixed(n) : '') + unit;
}

function showStudy(s) {
  document.title = 'offdiag study of heads';
  add(main, 'h1', 'Which prediction head?');
  add(main, 'p', s.about, 'soft');
  table(main, [['head', 'runs', 'kNN', 'linear', 'effective rank', '|offdiag| peak', '|offdiag| end'], ...s.heads.map(h =>
    [h.head, h.n + (h.failed ? ', ' + h.failed + ' failed' : ''), spread(h.knn, 100, 2, ' %'), spread(h.linear, 100, 2, ' %'), spread(h.effective_rank, 1, 1, ''),
     spread(h.offdiag_peak, 1, 3, ''), spread(h.offdiag_end, 1, 3, '')])]);
  add(main, 'p', 'Mean \u00b1 standard deviation over seeds. ' + s.protocol, 'soft');
  add(main, 'h2', 'Curves');
  add(main, 'p', 'Mean over seeds; the band is one standard deviation to either side.', 'soft');
  const box = grid(main);
  curves.forEach(([key, title, factor]) => overSteps(box, title, s.heads.flatMap((h, i) => {
    const c = h.curves[key], side = sign => c.mean.map((m, j) => known(m) ? m + sign * (c.std[j] || 0) : null);
    return band(h.head, points(c.step, side(-1), factor), points(c.step, c.mean, factor), points(c.step, side(1), factor), i);
  }).map(d => d.data.length < 3 && d.label ? Object.assign(d, {pointRadius: 3}) : d)));
  spectrumCard(box, s.heads.map(h => ({name: h.head, spectra: h.spectrum ? [h.spectrum] : []})), false);
  const heads = s.heads.filter(h => h.matrix);
  if (heads.length) {
    add(main, 'h2', 'Heads at the end, of the first seed');
    const cards = grid(main);
    heads.forEach(h => headCard(cards, h.head, h.matrix));
  }
  add(main, 'h2', 'Runs');
  table(main, [['run', 'state', ...figureHead.slice(2, 4), 'linear', ...figureHead.slice(4)], ...s.runs.map(r => {
    const f = figureTexts(r);
    return [r.name, r.state, ...f.slice(0, 2), asPercent(r.linear), ...f.slice(2)];
  })]);
  s.runs.filter(r => r.message).forEach(r => add(main, 'p', r.name + ': ' + r.message, 'soft'));
  settings(main, [{name: 'value', options: s.options}]);
}

if (data.kind === 'study') showStudy(data); else showRuns(data.runs);
