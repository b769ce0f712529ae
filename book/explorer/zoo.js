(config, kit) => {
  const { find, control, short, minus, linear } = kit;

  // ---- numbers: [c⁺, c⁻] as in the docstrings of lmdyn.losses (a test compares them) ----

  const s = (u) => 1 / (1 + Math.exp(-u));
  const slope = (u) => s(u) * s(-u);
  const logS = (u) => Math.min(u, 0) - Math.log1p(Math.exp(-Math.abs(u)));
  const mirrored = (c) => [c, -c];
  const odds = (logp) => logp - Math.log(-Math.expm1(logp));
  // a and b are Δ⁺ and Δ⁻, h their difference, p and q the log-probs per token, n the tokens.
  const COEFFICIENTS = {
    slic: ({ h }, { beta, delta }) => [-(h < delta) - beta, +(h < delta)],
    simpo: ({ h, n }, { beta, gamma }) => mirrored((-beta / n) * s(gamma - (beta * h) / n)),
    orpo: ({ p, q, n }, { weight }) => {
      const w = weight * s(odds(q) - odds(p));
      return [-(1 - w / Math.expm1(p)) / n, -w / Math.expm1(q) / n];
    },
    dpo: ({ h }, { beta, label_smoothing: e }) => mirrored(-beta * (s(-beta * h) - e)),
    spin: ({ h }, { beta }) => mirrored(-beta * s(-beta * h)),
    ipo: ({ h }, { beta }) => mirrored(2 * (h - 1 / (2 * beta))),
    hinge: ({ h }, { beta }) => mirrored(beta * h < 1 ? -beta : 0),
    robust: ({ h }, { beta, label_smoothing: e }) =>
      mirrored((-beta * ((1 - e) * s(-beta * h) + e * s(beta * h))) / (1 - 2 * e)),
    exo: ({ h }, { beta, label_smoothing: e }) =>
      mirrored(beta * slope(beta * h) * (beta * h - Math.log((1 - e) / e))),
    discopop: ({ h }, { beta, tau }) => {
      const [u, m] = [beta * h, s((beta * h) / tau)];
      const bump = (slope(u / tau) / tau) * (logS(u) + Math.exp(-u));
      return mirrored(beta * (bump - s(-u / tau) * s(-u) - m * Math.exp(-u)));
    },
    rpo: ({ h, n }, { beta, weight }) => [-beta * s(-beta * h) - weight / n, beta * s(-beta * h)],
    dpop: ({ a, h }, { beta, penalty }) => {
      const w = beta * s(-beta * (h - penalty * Math.max(0, -a)));
      return [-w * (a < 0 ? 1 + penalty : 1), w];
    },
    cal_dpo: ({ a, b, h }, { beta }) => [2 * a - 1 / beta - s(-h), 2 * b + 1 / beta + s(-h)],
    cw_dpo: ({ a, b, q }, { beta, floor, tau }) => {
      const cool = s((q - floor) / tau);
      const w = beta * s(-beta * (a - cool * b));
      return [-w, cool * w];
    },
    gate_dpo: ({ h, q }, { beta, alpha, tau }) => {
      const w = beta * s(-beta * h);
      return [-w, w * s(alpha * (Math.exp(q) - tau))];
    },
    cw_sft: ({ q }, { weight, floor }) => [-1, q > floor ? weight : 0],
    sppo: ({ a, b }, { eta }) => [2 * a - eta, 2 * b + eta],
    nca: ({ a, b }, { beta }) => [beta * (s(beta * a) / 2 - s(-beta * a)), (beta * s(beta * b)) / 2],
    bco: ({ a, b }, { beta }) => [-beta * s(-beta * a), beta * s(beta * b)],
    apo_zero: ({ a, b }, { beta }) => [-beta * slope(beta * a), beta * slope(beta * b)],
    apo_down: ({ a, h }, { beta }) => {
      const push = beta * slope(beta * h);
      return [beta * slope(beta * a) - push, push];
    },
    kto: ({ a, b }, { beta, desirable: up, undesirable: down }) =>
      [-up * beta * slope(beta * a), down * beta * slope(beta * b)],
  };

  function coefficients(loss, h, a, value) {
    const { start, n } = config;
    const pair = { a, b: a - h, h, n, p: (start + a) / n, q: (start + a - h) / n };
    return COEFFICIENTS[loss.name](pair, { ...loss.defaults, [loss.hyper]: value });
  }

  // ---- words and drawing ----

  const way = (c) => (c === 0 ? "left alone" : c < 0 ? "pulled up" : "pushed down");

  function verdict(title, h, [up, down]) {
    const ratio = Math.abs(down / up);
    const same = Math.abs(ratio - 1) < 1e-9;
    const times = ratio < 1 ? `y⁺ ${(1 / ratio).toPrecision(2)}` : `y⁻ ${ratio.toPrecision(2)}`;
    const hard = same ? ", equally hard" : up && down ? `, ${times} times as hard` : "";
    return `${title} at h = ${minus(String(h))}: y⁺ is ${way(up)}, y⁻ is ${way(down)}${hard}.`;
  }

  function here() {
    const loss = config.losses.find(({ name }) => name === control("loss").value);
    const [h, a, factor] = ["h", "up", "factor"].map((name) => Number(control(name).value));
    const usual = loss.defaults[loss.hyper];
    return { loss, h, a, usual, value: usual * Math.pow(10, factor) };
  }

  function draw() {
    if (!kit.size.width) return;
    const { loss, h, a, usual, value } = here();
    const { low, high } = config.sliders.h;
    const grid = Array.from({ length: 4 * (high - low) + 1 }, (_, i) => low + i / 4);
    const push = (value) => grid.map((h) => coefficients(loss, h, a, value).map((c) => -c));
    const [curves, pale] = [push(value), push(usual)];
    const ends = [0, ...curves.flat()];
    const yAxis = linear(Math.min(...ends), Math.max(...ends), 5);
    const chart = kit.frame(kit.size, linear(low, high, 9), yAxis, "margin h, nats", "push, −c");
    const line = (points, i, kind) => {
      const path = points.map((v, k) => `${chart.x(grid[k])} ${chart.y(v[i])}`).join("L");
      return `<path class="curve ${kind}" d="M${path}"/>`;
    };
    const both = (points) => line(points, 0, "gain") + line(points, 1, "loss");
    const { x, y, left, end, top, base } = chart;
    const dot = (c, kind) => `<circle class="${kind}" cx="${x(h)}" cy="${y(-c)}" r="5"/>`;
    const [up, down] = coefficients(loss, h, a, value);
    find("svg").innerHTML = [
      `<clipPath id="box"><rect x="${left}" y="${top}" width="${end - left}" height="${base - top}"/></clipPath>`,
      ...chart.grid,
      chart.across("zero", 0) + `<path class="zero" d="M${x(h)} ${top}V${base}"/>`,
      `<g clip-path="url(#box)" opacity="0.35">${both(pale)}</g>${both(curves)}`,
      dot(up, "gain") + dot(down, "loss"),
    ].join("");
  }

  function refresh() {
    const { loss, h, a, value } = here();
    const both = coefficients(loss, h, a, value);
    const ratio = both[1] / -both[0];
    find("#formula").textContent = loss.formula;
    kit.each(".symbol", loss.symbol);
    kit.tell("h", h, minus(String(h)) + " nats");
    kit.tell("up", a, minus(String(a)) + " nats");
    kit.tell("factor", value, `${loss.symbol} = ${Number(value.toPrecision(3))}`);
    kit.tell("chosen", both[0], short(both[0]));
    kit.tell("rejected", both[1], short(both[1]));
    kit.tell("ratio", ratio, Number.isFinite(ratio) ? short(ratio) : "–");
    kit.say(verdict(loss.title, h, both));
    draw();
  }

  kit.ranges(config.sliders);
  for (const { name, title } of config.losses) control("loss").append(new Option(title, name));
  Object.assign(control("loss"), { value: config.first });
  for (const name of ["h", "up", "factor"]) control(name).value = 0;
  const { low, high } = config.sliders.h;
  kit.scrub(control("h"), (at) => Math.round(low + at * (high - low)));
  return { refresh, draw };
}
