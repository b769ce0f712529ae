(config, kit) => {
  const { find, control } = kit;
  const sum = (values) => values.reduce((total, value) => total + value, 0);
  const signed = (x) => {
    const text = Math.abs(x).toFixed(Math.abs(x) < 9.95 ? 1 : 0);
    return text === "0.0" ? text : (x < 0 ? "−" : "+") + text;
  };
  let watched = 0; // which answer

  const chosen = () => config.cases[Number(control("case").value)];
  // The change of each token watched by token n of the update, counted from 1; 0 is all of them.
  const changes = ({ table }, n) => table.map((row) => (n ? row[n - 1] : sum(row)));

  function verdict(learned, { name, words }, values) {
    const moves = (i) => signed(values[i]) !== "0.0";
    const told = (i) => `“${words[i]}” by ${signed(values[i])}`;
    const of = (best) => values.indexOf(best(...values));
    const [most, least] = [of(Math.max), of(Math.min)];
    const lifts = values[most] > 0 && moves(most) ? `lifts ${told(most)}` : "lifts no token";
    const lowers = values[least] < 0 && moves(least) ? `lowers ${told(least)}` : "lowers none";
    return `Learning ${learned} ${lifts} and ${lowers}; all of the answer (${name}) moves by ${signed(sum(values))}.`;
  }

  function refresh(event) {
    const here = chosen();
    if (!event || event.target === control("case")) open();
    const n = Number(control("token").value);
    const learned = n ? `“${here.words[n - 1]}”` : "the whole answer";
    const answer = here.watched[watched];
    const values = changes(answer, n);
    const scale = Math.max(...here.watched.flatMap((other) => changes(other, n)).map(Math.abs));
    pressLearned(n);
    pressWatched(watched);
    kit.tell("token", n, learned);
    find("#moved").innerHTML = values
      .map((value, i) => {
        const [kind, sign] = value < 0 ? ["loss", "▼"] : ["gain", "▲"];
        const text = signed(value) === "0.0" ? "unchanged" : `${sign} ${signed(value)}`;
        const share = Math.round(55 * Math.sqrt(Math.abs(value) / (scale || 1)));
        const color = `color-mix(in srgb, var(--lmdyn-${kind}) ${share}%, transparent)`;
        return `<li data-value="${value}" style="background:${color}"><span></span><small>${text}</small></li>`;
      })
      .join("");
    answer.words.forEach((word, i) => (find("#moved").children[i].firstChild.textContent = word));
    kit.say(verdict(learned, answer, values));
  }

  // Another prompt: its answer, and those to watch. It opens on the token that moves itself most.
  let [pressLearned, pressWatched] = [];
  function open() {
    const here = chosen();
    const named = (names) => names.map((name, key) => ({ key, name }));
    pressLearned = kit.buttons("#learned", named(["the whole answer", ...here.words]), (key) => {
      control("token").value = key;
      refresh({});
    });
    pressWatched = kit.buttons("#watched", named(here.watched.map(({ name }) => name)), (key) => {
      watched = key;
      refresh({});
    });
    watched = Math.min(watched, here.watched.length - 1);
    kit.ranges({ token: { low: 0, high: here.words.length, step: 1 } });
    const own = here.watched[0].table.map((row, i) => row[i] ?? 0);
    control("token").value = own.indexOf(Math.max(...own)) + 1;
  }

  config.cases.forEach(({ prompt }, i) => control("case").append(new Option(prompt, i)));
  return { refresh };
}
