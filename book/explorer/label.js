// The first half mirrors book/explorer/steps.py and lmdyn/softmax.py number by number (a test
// compares them); the second half shows the numbers.
(config, kit) => {
  const { find, control, short, superscript } = kit;

  // ---- numbers ----

  const sum = (values) => values.reduce((total, value) => total + value, 0);

  function distribution({ peakiness, y, p_y }) {
    const weights = Array.from({ length: config.n_labels }, (_, i) =>
      i === y ? 0 : Math.pow(i + 1, -peakiness)
    );
    const total = sum(weights);
    return weights.map((weight, i) => (i === y ? p_y : ((1 - p_y) * weight) / total));
  }

  // The change of the logits, lr·(e_y − π).
  const logitChange = (probs, y, lr) => probs.map((p, i) => lr * ((i === y ? 1 : 0) - p));

  function logSumExp(values) {
    const top = Math.max(...values);
    return top + Math.log(sum(values.map((value) => Math.exp(value - top))));
  }

  function softmaxStep(probs, y, lr) {
    const change = logitChange(probs, y, lr);
    const logits = probs.map((p, i) => Math.log(p) + change[i]);
    const top = Math.max(...logits);
    const weights = logits.map((z) => Math.exp(z - top));
    const total = sum(weights);
    return weights.map((weight) => weight / total);
  }

  function exactLine(probs, y, lr) {
    const change = logitChange(probs, y, lr);
    // Small steps need log1p and expm1 to keep the limit, large ones a sum that cannot overflow.
    const logZ =
      Math.abs(lr) < 1
        ? Math.log1p(sum(probs.map((p, i) => p * Math.expm1(change[i]))))
        : logSumExp(probs.map((p, i) => Math.log(p) + change[i]));
    return -logZ / lr;
  }

  function explore(setting) {
    const { y, lr, steps } = setting;
    const before = distribution(setting);
    let after = before;
    for (let step = 0; step < steps; step++) after = softmaxStep(after, y, lr);
    const gains = after.map((p, i) => Math.max(0, p - before[i]));
    let top = -1;
    before.forEach((p, i) => {
      if (i !== y && (top < 0 || p > before[top])) top = i;
    });
    const moved = sum(gains);
    return {
      before,
      after,
      p_y_before: before[y],
      p_y_after: after[y],
      top,
      top_before: before[top],
      top_after: after[top],
      moved,
      share: moved > 0 ? gains[top] / moved : NaN,
      gaining: gains.filter((gain, i) => gain > 0 && i !== y).length,
      line: sum(before.map((p) => p * p)) - before[y],
      exact_line: exactLine(before, y, lr),
    };
  }

  function percent(x) {
    x *= 100;
    if (x >= 1) return x.toFixed(1) + "%";
    return x >= 1e-4 ? x.toPrecision(2) + "%" : "less than 0.0001%";
  }

  function verdict({ y, lr }, result) {
    if (result.moved === 0) return "No step, no change.";
    const { top, gaining } = result;
    const others = config.n_labels - 1;
    const own = percent(Math.abs(result.p_y_after - result.p_y_before));
    const share = percent(result.share);
    const gainers = `${gaining} of the ${others} other labels gain${gaining === 1 ? "s" : ""}`;
    if (lr > 0 && gaining === 0)
      return `Learned: label ${y} gains ${own} of the mass, and every other label pays for it.`;
    if (lr > 0) return `Learned: label ${y} gains ${own} of the mass; ${gainers} too, the rest pay.`;
    if (gaining === others)
      return (
        `Not squeezed: label ${y} loses ${own} of the mass and every other label gains; ` +
        `label ${top} takes ${share} of it.`
      );
    const lost = `label ${y} loses ${own} of the mass, but ${percent(result.moved)} moves in all`;
    if (gaining === 1) return `Squeezed: ${lost}, every bit of it to label ${top}.`;
    return (
      `Partly squeezed: ${lost}; ${gainers}, the rest fall, and label ${top} takes ${share} ` +
      `of what moves.`
    );
  }

  // ---- words and drawing ----

  function rule({ lr, steps }, result) {
    const line = steps > 1 ? "exact line of the first step" : "exact line";
    if (lr < 0 && result.exact_line < 0)
      return `The ${line} lies below zero: every other label stands above it and gains.`;
    if (lr < 0) return `Another label gains if it stands above the ${line}, and falls if below.`;
    if (result.exact_line < 0)
      return `The ${line} lies below zero: no other label stands below it, so none gains.`;
    return `After a positive step another label gains if it stands below the ${line}.`;
  }

  // An axis of logarithms, by its floor: as deep as the least of the probabilities asks for.
  function logAxis(probs) {
    const least = Math.log10(Math.max(Math.min(...probs), 1e-64));
    const floor = [-8, -16, -32, -64].find((power) => power <= least);
    const powers = [0, 1, 2, 3, 4].map((i) => (i * floor) / 4);
    const at = (p) => Math.max(0, 1 - Math.log10(Math.max(p, 1e-300)) / floor);
    return { at, ticks: powers.map((n) => [10 ** n, n ? "10" + superscript(n) : "1"]) };
  }
  const labels = Array.from({ length: config.n_labels }, (_, i) => i);
  const labelAxis = {
    at: (i) => (i + 0.5) / labels.length,
    ticks: labels.filter((i) => i % 10 === 0).map((i) => [i, i]),
  };

  // `after` is what is drawn, which in motion is not yet that of the result.
  function draw({ y }, result, after, log) {
    const { before } = result;
    const ends = [...before, ...result.after];
    const yAxis = log ? logAxis(ends) : kit.linear(0, Math.max(...ends), 5);
    const chart = kit.frame(kit.size, labelAxis, yAxis, "label (click one to push it)", "probability");
    const slot = chart.x(1) - chart.x(0);
    const size = Math.min(4.5, slot / 2);
    const parts = [...chart.grid];
    for (const [i, p] of before.entries()) {
      const [start, end, x] = [chart.y(p), chart.y(after[i]), chart.x(i)];
      const up = after[i] > p;
      const kind = up ? "gain" : "loss";
      const tail = end + (up ? size : -size);
      parts.push(
        `<rect class="before" x="${x - 0.4 * slot}" width="${0.8 * slot}" y="${start}" height="${chart.base - start}"/>`
      );
      if (after[i] === p) continue;
      if (up ? tail < start : tail > start)
        parts.push(`<line class="stem ${kind}" x1="${x}" x2="${x}" y1="${start}" y2="${tail}"/>`);
      parts.push(
        `<path class="head ${kind}" d="M${x - size} ${tail}h${2 * size}L${x} ${end - (up ? size : -size)}z"/>`
      );
    }
    parts.push(`<circle class="ring" cx="${chart.x(y)}" cy="${chart.y(after[y])}" r="${size + 4}"/>`);
    for (const [kind, line] of [["first", result.line], ["exact", result.exact_line]])
      if (line > 0 && yAxis.at(line) > 0)
        parts.push(
          `<line class="line ${kind}" x1="${chart.left}" x2="${chart.end}" y1="${chart.y(line)}" y2="${chart.y(line)}"/>`
        );
    for (const [i, p] of before.entries())
      parts.push(
        `<rect class="slot" x="${chart.x(i) - slot / 2}" y="${chart.top}" width="${slot}" height="${chart.base - chart.top}" ` +
          `data-before="${p}" data-after="${result.after[i]}"><title>label ${i}: ${short(p)} → ${short(result.after[i])}</title></rect>`
      );
    find("svg").innerHTML = parts.join("");
  }

  // ---- motion ----

  const still = matchMedia("(prefers-reduced-motion: reduce)");
  const sliders = Object.keys(config.sliders);
  const [MOVE, STEP, STEPS] = [350, 180, 10]; // ms, ms, steps of the button
  let [drawn, request, timer] = [null, 0, 0];
  let redraw = () => {};

  // Draw the way from what is on show to the result; on the axis of logarithms it is straight.
  function moveTo(now, result) {
    const log = kit.chosen("axis") === "log";
    const from = drawn && !still.matches ? drawn : result.after;
    const started = performance.now();
    redraw = () => {
      cancelAnimationFrame(request);
      const t = from === result.after ? 1 : Math.min(1, (performance.now() - started) / MOVE);
      const between = (p, q) => (log && p && q ? p * Math.pow(q / p, t) : p + (q - p) * t);
      drawn = t < 1 ? from.map((p, i) => between(p, result.after[i])) : result.after;
      if (kit.size.width) draw(now, result, drawn, log);
      if (t < 1) request = requestAnimationFrame(redraw);
    };
    redraw();
  }

  function stop() {
    clearInterval(timer);
    timer = 0;
    find("#play").textContent = `▶ ${STEPS} more steps`;
    find("#verdict").setAttribute("aria-live", "polite");
  }

  function play() {
    if (timer) return stop();
    const { high } = config.sliders.steps;
    const steps = control("steps");
    const start = Number(steps.value) === high ? 0 : Number(steps.value);
    const last = Math.min(high, start + STEPS);
    const go = (n) => {
      steps.value = n;
      refresh();
      if (n === last) stop();
    };
    if (still.matches) return go(last);
    find("#play").textContent = "■ Stop";
    find("#verdict").setAttribute("aria-live", "off"); // only the last one is read out
    go(start);
    timer = setInterval(() => go(Number(steps.value) + 1), STEP);
  }

  // ---- one explorer ----

  function position() {
    const values = sliders.map((name) => [name, Number(control(name).value)]);
    return Object.fromEntries([...values, ["direction", Number(kit.chosen("direction"))]]);
  }

  function place(target) {
    stop();
    for (const name of sliders) control(name).value = target[name];
    find(`input[name="direction"][value="${target.direction}"]`).checked = true;
  }

  function refresh() {
    const here = position();
    const { peakiness, y, log10_p_y, step_size, direction, steps } = here;
    const now = { peakiness, y, p_y: Math.pow(10, log10_p_y), lr: direction * step_size, steps };
    const result = explore(now);
    kit.tell("peakiness", peakiness, peakiness.toFixed(2));
    kit.tell("y", y, y);
    kit.tell("log10_p_y", now.p_y, short(now.p_y));
    kit.tell("step_size", step_size, step_size.toFixed(1));
    kit.tell("steps", steps, steps);
    const texts = {
      top: result.top,
      share: Number.isNaN(result.share) ? "–" : (100 * result.share).toFixed(1) + "%",
      gaining: `${result.gaining} of ${config.n_labels - 1}`,
    };
    for (const { dataset } of find(".card").querySelectorAll("[data-name]"))
      kit.tell(dataset.name, result[dataset.name], texts[dataset.name] ?? short(result[dataset.name]));
    kit.each(".y", y);
    kit.each(".top", result.top);
    kit.say(verdict(now, result));
    find(".rule").textContent = rule(now, result);
    const same = ({ position: at }) => Object.keys(here).every((name) => here[name] === at[name]);
    press(...config.presets.filter(same).map(({ key }) => key));
    moveTo(now, result);
  }

  kit.ranges(config.sliders);
  const press = kit.buttons(".presets", config.presets, (key) => {
    place(config.presets.find((preset) => preset.key === key).position);
    refresh();
  });
  place(config.presets[0].position);
  find("#play").addEventListener("click", play);
  kit.scrub(control("y"), (at) => Math.min(labels.length - 1, Math.floor(at * labels.length)));
  return { refresh, draw: () => redraw() };
}
