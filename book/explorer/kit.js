// What the explorers share: the start of each host of this key, number formats, axes and controls.
(function (key, config, tree, build) {
  "use strict";

  const superscript = (n) => String(n).replace(/./g, (c) => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(c)]);
  const minus = (text) => text.replace("-", "−");

  function short(x) {
    const size = Math.abs(x);
    if (size === 0 || size >= 5e-4) return minus(x.toFixed(4));
    const [digits, power] = x.toExponential(1).split("e");
    return minus(digits) + "·10" + superscript(Number(power));
  }

  // An axis that holds low and high and ends at round numbers.
  function linear(low, high, count) {
    const rough = (high - low) / count;
    const power = 10 ** Math.floor(Math.log10(rough) + 1e-9);
    const step = power * [1, 2, 5, 10].find((m) => m * power > 0.999 * rough);
    const [first, last] = [Math.floor(low / step + 1e-9), Math.ceil(high / step - 1e-9)];
    const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
    const values = Array.from({ length: last - first + 1 }, (_, i) => (first + i) * step);
    const ticks = values.map((v) => [v, minus(v.toFixed(digits)).replace(/^−(0\.?0*)$/, "$1")]);
    return { at: (v) => (v / step - first) / (last - first), ticks };
  }

  // The frame of a chart. x and y turn values into pixels; grid is its SVG.
  const [LEFT, RIGHT, HEAD, FOOT] = [46, 8, 22, 38];
  function frame({ width, height }, xAxis, yAxis, xName, yName) {
    const [end, base] = [width - RIGHT, height - FOOT];
    const x = (v) => LEFT + (end - LEFT) * xAxis.at(v);
    const y = (v) => base - (base - HEAD) * yAxis.at(v);
    const text = (x, y, anchor, what) => `<text x="${x}" y="${y}" text-anchor="${anchor}">${what}</text>`;
    const across = (kind, v) => `<line class="${kind}" x1="${LEFT}" x2="${end}" y1="${y(v)}" y2="${y(v)}"/>`;
    const grid = [
      text(0, 10, "start", yName) + text((LEFT + end) / 2, base + 34, "middle", xName),
      ...xAxis.ticks.map(([v, name]) => text(x(v), base + 18, "middle", name)),
      ...yAxis.ticks.map(([v, name]) => across("grid", v) + text(LEFT - 6, y(v) + 4, "end", name)),
    ];
    return { x, y, across, left: LEFT, end, top: HEAD, base, grid };
  }

  function start(host) {
    const root = host.attachShadow({ mode: "open" });
    root.innerHTML = tree;
    const find = (selector) => root.querySelector(selector) ?? host.querySelector(selector);
    const control = (name) => find(`#${name}, [name="${name}"]:not([type="radio"])`);

    const kit = { short, minus, superscript, linear, frame, find, control, size: { width: 0 } };
    kit.chosen = (name) => find(`input[name="${name}"]:checked`).value;
    kit.ranges = (sliders) => {
      for (const [name, { low, high, step }] of Object.entries(sliders))
        Object.assign(control(name), { min: low, max: high, step, disabled: false });
    };
    // Show a number: a slider's, in its output, or one of the table.
    kit.tell = (name, value, text) => {
      const output = find(`output[for="${name}"], [data-name="${name}"]`);
      output.textContent = text;
      output.dataset.value = value;
      control(name)?.setAttribute("aria-valuetext", text);
    };
    kit.each = (selector, text) => {
      for (const element of root.querySelectorAll(selector)) element.textContent = text;
    };
    kit.say = (text) => {
      if (find("#verdict").textContent !== text) find("#verdict").textContent = text;
    };
    // Buttons of which those are pressed that press() is given the keys of.
    kit.buttons = (box, items, pick) => {
      find(box).innerHTML = `<button type="button"></button>`.repeat(items.length);
      const buttons = [...find(box).children];
      for (const [i, { key, name }] of items.entries())
        Object.assign(buttons[i], { textContent: name, onclick: () => pick(key) });
      return (...keys) =>
        items.forEach(({ key }, i) => buttons[i].setAttribute("aria-pressed", keys.includes(key)));
    };
    // A pointer on the chart moves a slider; a click gives it the keyboard as well.
    kit.scrub = (input, valueAt) => {
      const svg = find("svg");
      const pick = (event) => {
        const box = svg.getBoundingClientRect();
        const at = (event.clientX - box.left - LEFT) / (box.width - LEFT - RIGHT);
        input.value = valueAt(Math.min(Math.max(at, 0), 1));
        input.dispatchEvent(new Event("input", { bubbles: true, composed: true }));
      };
      svg.addEventListener("pointerdown", (event) => {
        svg.setPointerCapture(event.pointerId); // what is drawn there is about to be replaced
        pick(event);
      });
      svg.addEventListener("pointermove", (event) => event.buttons && pick(event));
      svg.addEventListener("pointerup", () => input.focus({ preventScroll: true }));
    };

    const { refresh, draw } = build(config, kit);
    root.addEventListener("input", refresh);
    refresh();
    if (!draw) return;
    new ResizeObserver(([entry]) => {
      kit.size = entry.contentRect; // kept, since asking for it forces a layout
      draw();
    }).observe(find("svg"));
  }

  for (const host of document.querySelectorAll(`[data-explorer="${key}"]`))
    if (!host.shadowRoot) start(host);
})
