// The first half mirrors book/explorer/steps.py and lmdyn/softmax.py number by number (a test
// compares them); the second half shows the numbers.
(config, kit) => {
  const { find, control, short, superscript } = kit;

  // ---- numbers ----

  const labels = Array.from({ length: config.n_labels }, (_, i) => i);
  const sum = (values) => values.reduce((total, value) => total + value, 0);

  function distribution({ peakiness, y, p_y }) {
    const weights = labels.map((i) => (i === y ? 0 : Math.pow(i + 1, -peakiness)));
    const total = sum(weights);
    return weights.map((weight, i) => (i === y ? p_y : ((1 - p_y) * weight) / total));
  }

  // The change of the logits, lr·(e_y − π), and e to the logits after it, up to a factor e^top.
  const logitChange = (probs, y, lr) => probs.map((p, i) => lr * ((i === y ? 1 : 0) - p));
  function scaled(probs, change) {
    const logits = probs.map((p, i) => Math.log(p) + change[i]);
    const top = Math.max(...logits);
    return [top, logits.map((z) => Math.exp(z - top))];
  }

  function softmaxStep(probs, y, lr) {
    const [, weights] = scaled(probs, logitChange(probs, y, lr));
    const total = sum(weights);
    return weights.map((weight) => weight / total);
  }

  function exactLine(probs, y, lr) {
    const change = logitChange(probs, y, lr);
    // Small steps need log1p and expm1 to keep the limit, large ones a sum that cannot overflow.
    if (Math.abs(lr) < 1) return -Math.log1p(sum(probs.map((p, i) => p * Math.expm1(change[i])))) / lr;
    const [top, weights] = scaled(probs, change);
    return -(top + Math.log(sum(weights))) / lr;
  }

  function explore(setting) {
    const { y, lr, steps } = setting;
    const before = distribution(setting);
    let after = before;
    for (let step = 0; step < steps; step++) after = softmaxStep(after, y, lr);
    const gains = after.map((p, i) => Math.max(0, p - before[i]));
    const [top] = labels.filter((i) => i !== y).sort((i, j) => before[j] - before[i] || i - j);
    const moved = sum(gains);
    const [p_y_before, p_y_after, top_before, top_after] = [before[y], after[y], before[top], after[top]];
    const share = moved > 0 ? gains[top] / moved : NaN;
    const gaining = gains.filter((gain, i) => gain > 0 && i !== y).length;
    const [line, exact_line] = [sum(before.map((p) => p * p)) - before[y], exactLine(before, y, lr)];
    const own = { p_y_before, p_y_after, top, top_before, top_after };
    return { before, after, ...own, moved, share, gaining, line, exact_line };
  }

  function percent(x) {
    if (x >= 0.01) return (100 * x).toFixed(1) + "%";
    return x >= 1e-6 ? (100 * x).toPrecision(2) + "%" : "less than 0.0001%";
  }

  function verdict({ y, lr }, { top, gaining, moved, ...result }) {
    if (moved === 0) return "No step, no change.";
    const others = labels.length - 1;
    const own = percent(Math.abs(result.p_y_after - result.p_y_before)) + " of the mass";
    const takes = `label ${top} takes ${percent(result.share)} of`;
    const gainers = `${gaining} of the ${others} other labels gain${gaining === 1 ? "s" : ""}`;
    const pays = gaining ? `; ${gainers} too, the rest pay.` : ", and every other label pays for it.";
    if (lr > 0) return `Learned: label ${y} gains ${own}${pays}`;
    const lost = `label ${y} loses ${own}`;
    if (gaining === others) return `Not squeezed: ${lost} and every other label gains; ${takes} it.`;
    const all = `${lost}, but ${percent(moved)} moves in all`;
    if (gaining === 1) return `Squeezed: ${all}, every bit of it to label ${top}.`;
    return `Partly squeezed: ${all}; ${gainers}, the rest fall, and ${takes} what moves.`;
  }

  function rule({ lr, steps }, { exact_line }) {
    const line = steps > 1 ? "exact line of the first step" : "exact line";
    const none = lr < 0 ? "every other label stands above it and gains" : "no other label stands below it, so none gains";
    if (exact_line < 0) return `The ${line} lies below zero: ${none}.`;
    if (lr < 0) return `Another label gains if it stands above the ${line}, and falls if below.`;
    return `After a positive step another label gains if it stands below the ${line}.`;
  }

  // ---- drawing ----

  // An axis of logarithms, by its floor: as deep as the least of the probabilities asks for.
  function logAxis(probs) {
    const least = Math.log10(Math.max(Math.min(...probs), 1e-64));
    const floor = [-8, -16, -32, -64].find((power) => power <= least);
    const powers = [0, 1, 2, 3, 4].map((i) => (i * floor) / 4);
    const at = (p) => Math.max(0, 1 - Math.log10(Math.max(p, 1e-300)) / floor);
    return { at, ticks: powers.map((n) => [10 ** n, n ? "10" + superscript(n) : "1"]) };
  }
  const tens = labels.filter((i) => i % 10 === 0).map((i) => [i, i]);
  const labelAxis = { at: (i) => (i + 0.5) / labels.length, ticks: tens };

  // `after` is what is drawn, which in motion is not yet that of the result.
  function draw({ y }, result, after, log) {
    const { before } = result;
    const ends = [...before, ...result.after];
    const yAxis = log ? logAxis(ends) : kit.linear(0, Math.max(...ends), 5);
    const chart = kit.frame(kit.size, labelAxis, yAxis, "label (tap or click one to push it)", "probability");
    const slot = chart.x(1) - chart.x(0);
    const size = Math.min(4.5, slot / 2);
    const bar = (p, i) => {
      const [start, end, x, up] = [chart.y(p), chart.y(after[i]), chart.x(i), after[i] > p];
      const [kind, tip] = up ? ["gain", -size] : ["loss", size];
      const stem = up ? end - tip < start : end - tip > start;
      const arrow =
        (stem ? `<line class="stem ${kind}" x1="${x}" x2="${x}" y1="${start}" y2="${end - tip}"/>` : "") +
        `<path class="head ${kind}" d="M${x - size} ${end - tip}h${2 * size}L${x} ${end + tip}z"/>`;
      return box("before", x - 0.4 * slot, 0.8 * slot, start) + (after[i] === p ? "" : arrow);
    };
    const box = (kind, x, width, top, more = ">") =>
      `<rect class="${kind}" x="${x}" width="${width}" y="${top}" height="${chart.base - top}" ${more}</rect>`;
    const line = (kind, p) => (p > 0 && yAxis.at(p) > 0 ? chart.across(`line ${kind}`, p) : "");
    find("svg").innerHTML = [
      ...chart.grid,
      ...before.map(bar),
      `<circle class="ring" cx="${chart.x(y)}" cy="${chart.y(after[y])}" r="${size + 4}"/>`,
      line("first", result.line) + line("exact", result.exact_line),
      ...before.map((p, i) => {
        const title = `<title>label ${i}: ${short(p)} → ${short(result.after[i])}</title>`;
        const numbers = `data-before="${p}" data-after="${result.after[i]}">${title}`;
        return box("slot", chart.x(i) - slot / 2, slot, chart.top, numbers);
      }),
    ].join("");
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
      if (n >= last) stop();
    };
    if (still.matches) return go(last);
    find("#play").textContent = "■ Stop";
    find("#verdict").setAttribute("aria-live", "off"); // only the last one is read out
    go(start);
    timer = setInterval(() => go(Number(steps.value) + 1), STEP);
  }

  // ---- one explorer ----

  function place(target) {
    stop();
    for (const name of sliders) control(name).value = target[name];
    find(`input[name="direction"][value="${target.direction}"]`).checked = true;
  }

  function refresh() {
    const here = { direction: Number(kit.chosen("direction")) };
    for (const name of sliders) here[name] = Number(control(name).value);
    const { peakiness, y, log10_p_y, step_size, direction, steps } = here;
    const now = { peakiness, y, p_y: Math.pow(10, log10_p_y), lr: direction * step_size, steps };
    const result = explore(now);
    kit.tell("peakiness", peakiness, peakiness.toFixed(2));
    kit.tell("y", y, y);
    kit.tell("log10_p_y", now.p_y, short(now.p_y));
    kit.tell("step_size", step_size, step_size.toFixed(1));
    kit.tell("steps", steps, steps);
    const share = Number.isNaN(result.share) ? "–" : (100 * result.share).toFixed(1) + "%";
    const texts = { top: result.top, share, gaining: `${result.gaining} of ${labels.length - 1}` };
    for (const { dataset: { name } } of find(".numbers").querySelectorAll("[data-name]"))
      kit.tell(name, result[name], texts[name] ?? short(result[name]));
    kit.each(".y", y);
    kit.each(".top", result.top);
    kit.say(verdict(now, result));
    find(".rule").textContent = rule(now, result);
    const same = ({ position: at }) => Object.keys(here).every((name) => here[name] === at[name]);
    press(...config.presets.filter(same).map(({ key }) => key));
    moveTo(now, result);
  }

  kit.ranges(config.sliders);
  const press = kit.buttons("#presets", config.presets, (key) => {
    place(config.presets.find((preset) => preset.key === key).position);
    refresh();
  });
  place(config.presets[0].position);
  find("#play").addEventListener("click", play);
  kit.scrub(control("y"), (at) => Math.min(labels.length - 1, Math.floor(at * labels.length)));
  return { refresh, draw: () => redraw() };
}
