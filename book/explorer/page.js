// The squeeze explorer without a kernel. The first half mirrors book/explorer/steps.py and
// lmdyn/softmax.py number by number (a test compares them); the second half shows the numbers.
(function (config, tree) {
  "use strict";

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

  const superscript = (n) => String(n).replace(/./g, (c) => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(c)]);

  function short(x) {
    const size = Math.abs(x);
    if (size === 0 || size >= 5e-4) return x.toFixed(4).replace("-", "−");
    const [digits, power] = x.toExponential(1).split("e");
    return digits.replace("-", "−") + "·10" + superscript(Number(power));
  }

  function rule({ lr, steps }, result) {
    const line = steps > 1 ? "exact line of the first step" : "exact line";
    if (lr < 0 && result.exact_line < 0)
      return `The ${line} lies below zero: every other label stands above it and gains.`;
    if (lr < 0) return `Another label gains if it stands above the ${line}, and falls if below.`;
    if (result.exact_line < 0)
      return `The ${line} lies below zero: no other label stands below it, so none gains.`;
    return `After a positive step another label gains if it stands below the ${line}.`;
  }

  const LOG_FLOOR = 1e-8;

  // A linear axis that ends at a round number above the tallest bar.
  function linearAxis(tallest) {
    const [end, step] = [[0.05, 0.01], [0.1, 0.02], [0.2, 0.05], [0.5, 0.1], [1, 0.2]].find(
      ([end]) => end >= tallest
    );
    const ticks = Array.from({ length: Math.round(end / step) + 1 }, (_, i) => i * step);
    return { at: (p) => p / end, ticks: ticks.map((p) => [p, p.toFixed(step < 0.1 ? 2 : 1)]) };
  }

  function logAxis() {
    const at = (p) => Math.max(0, 1 - Math.log10(Math.max(p, LOG_FLOOR)) / Math.log10(LOG_FLOOR));
    return { at, ticks: [0, -2, -4, -6, -8].map((n) => [10 ** n, n ? "10" + superscript(n) : "1"]) };
  }

  function draw(svg, { width, height }, { y }, result, log) {
    const { before, after } = result;
    const [left, right, head, foot] = [40, 4, 22, 40];
    const axis = log ? logAxis() : linearAxis(Math.max(...before, ...after));
    const slot = (width - left - right) / before.length;
    const yOf = (p) => head + (height - head - foot) * (1 - axis.at(p));
    const xOf = (i) => left + slot * (i + 0.5);
    const base = height - foot;
    const size = Math.min(4.5, slot / 2);
    const parts = [`<text x="0" y="10">probability</text>`];

    for (const [p, name] of axis.ticks) {
      parts.push(
        `<line class="grid" x1="${left}" x2="${width - right}" y1="${yOf(p)}" y2="${yOf(p)}"/>`,
        `<text x="${left - 6}" y="${yOf(p) + 4}" text-anchor="end">${name}</text>`
      );
    }
    for (let i = 0; i < before.length; i += 10)
      parts.push(`<text x="${xOf(i)}" y="${base + 20}" text-anchor="middle">${i}</text>`);
    parts.push(
      `<text x="${(left + width - right) / 2}" y="${base + 36}" text-anchor="middle">label</text>`
    );

    before.forEach((p, i) => {
      const [start, end, x] = [yOf(p), yOf(after[i]), xOf(i)];
      const up = after[i] > p;
      const kind = up ? "gain" : "loss";
      const tail = end + (up ? size : -size);
      parts.push(
        `<rect class="before" x="${x - 0.4 * slot}" width="${0.8 * slot}" y="${start}" height="${base - start}"/>`
      );
      if (after[i] === p) return;
      if (up ? tail < start : tail > start)
        parts.push(`<line class="stem ${kind}" x1="${x}" x2="${x}" y1="${start}" y2="${tail}"/>`);
      parts.push(
        `<path class="head ${kind}" d="M${x - size} ${tail}h${2 * size}L${x} ${end - (up ? size : -size)}z"/>`
      );
    });
    parts.push(`<circle class="ring" cx="${xOf(y)}" cy="${yOf(after[y])}" r="${size + 4}"/>`);

    for (const [kind, line] of [["first", result.line], ["exact", result.exact_line]])
      if (line > (log ? LOG_FLOOR : 0))
        parts.push(
          `<line class="line ${kind}" x1="${left}" x2="${width - right}" y1="${yOf(line)}" y2="${yOf(line)}"/>`
        );

    before.forEach((p, i) => {
      parts.push(
        `<rect class="slot" x="${xOf(i) - slot / 2}" y="${head}" width="${slot}" height="${base - head}" ` +
          `data-before="${p}" data-after="${after[i]}"><title>label ${i}: ${short(p)} → ${short(after[i])}</title></rect>`
      );
    });
    svg.innerHTML = parts.join("");
  }

  // ---- one explorer ----

  function start(host) {
    const root = host.attachShadow({ mode: "open" });
    root.innerHTML = tree;
    const find = (selector) => root.querySelector(selector);
    const sliders = Object.keys(config.sliders);
    const chosen = (name) => find(`input[name="${name}"]:checked`).value;

    function position() {
      const values = sliders.map((name) => [name, Number(root.getElementById(name).value)]);
      return Object.fromEntries([...values, ["direction", Number(chosen("direction"))]]);
    }

    function setting({ peakiness, y, log10_p_y, step_size, direction, steps }) {
      return { peakiness, y, p_y: Math.pow(10, log10_p_y), lr: direction * step_size, steps };
    }

    function place(target) {
      for (const name of sliders) root.getElementById(name).value = target[name];
      find(`input[name="direction"][value="${target.direction}"]`).checked = true;
    }

    let size = { width: 0, height: 0 }; // kept, since asking for it forces a layout
    let redraw;

    function refresh() {
      const here = position();
      const now = setting(here);
      const result = explore(now);
      const shown = {
        peakiness: [now.peakiness, now.peakiness.toFixed(2)],
        y: [now.y, now.y],
        log10_p_y: [now.p_y, short(now.p_y)],
        step_size: [here.step_size, here.step_size.toFixed(1)],
        steps: [now.steps, now.steps],
      };
      for (const name of sliders) {
        const [value, text] = shown[name];
        const output = find(`output[for="${name}"]`);
        output.textContent = text;
        output.dataset.value = value;
        root.getElementById(name).setAttribute("aria-valuetext", text);
      }
      const texts = {
        top: result.top,
        share: Number.isNaN(result.share) ? "–" : (100 * result.share).toFixed(1) + "%",
        gaining: `${result.gaining} of ${config.n_labels - 1}`,
      };
      for (const cell of root.querySelectorAll("[data-name]")) {
        const name = cell.dataset.name;
        cell.textContent = texts[name] ?? short(result[name]);
        cell.dataset.value = result[name];
      }
      find(".y").textContent = now.y;
      find(".top").textContent = result.top;
      const said = verdict(now, result);
      if (find("#verdict").textContent !== said) find("#verdict").textContent = said;
      find(".rule").textContent = rule(now, result);
      for (const [i, preset] of config.presets.entries()) {
        const same = Object.keys(here).every((name) => here[name] === preset.position[name]);
        find(".presets").children[i].setAttribute("aria-pressed", same);
      }
      redraw = () => size.width && draw(find("svg"), size, now, result, chosen("axis") === "log");
      redraw();
    }

    for (const name of sliders) {
      const { low, high, step } = config.sliders[name];
      Object.assign(root.getElementById(name), { min: low, max: high, step });
    }
    for (const preset of config.presets) {
      const button = document.createElement("button");
      button.type = "button";
      button.dataset.preset = preset.key;
      button.textContent = preset.name;
      button.addEventListener("click", () => {
        place(preset.position);
        refresh();
      });
      find(".presets").append(button);
    }
    place(config.presets[0].position);
    root.addEventListener("input", refresh);
    refresh();
    new ResizeObserver(([entry]) => {
      size = entry.contentRect;
      redraw();
    }).observe(find("svg"));
  }

  for (const host of document.querySelectorAll(".lmdyn-explorer")) if (!host.shadowRoot) start(host);
})
