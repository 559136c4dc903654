// Asks for the next frames before the last ones are shown; whoever does not ask gets none drawn.
"use strict";

const at = (id) => document.getElementById(id);
const SEED_STEPS = { ArrowLeft: -1, ArrowRight: 1 }, HEAT_STEPS = { ArrowDown: -1, ArrowUp: 1 };
const ARROWS = { ArrowLeft: "←", ArrowRight: "→", ArrowUp: "↑", ArrowDown: "↓" };
const LAST_SEED = 2 ** 32 - 1;

const about = await (await fetch("/about")).json();
const canvas = at("screen"), pencil = canvas.getContext("2d");
const state = {
  playing: true, asking: false, ended: false, video: null, queue: [], due: 0, shown: 0,
  perSecond: 0,  // Frames that are drawn in a second, a moving average.
  held: [], tapped: null,  // Actions whose keys are down, the last one first; one let go since.
};
let age = 0;  // Of videos: an answer to an older one is dropped.

async function ask(path, wish) {
  const answer = await fetch(path, {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(wish),
  });
  if (!answer.ok) throw new Error(await answer.text());
  return answer;
}

function say(text) {
  at("note").textContent = text;
  at("note").hidden = !text;
}

function play(playing) {
  state.playing = playing;
  at("toggle").textContent = playing ? "Pause" : "Play";
}

function restart(seed) {
  at("seed").value = Math.min(LAST_SEED, Math.max(0, Math.trunc(seed) || 0));
  age += 1;
  Object.assign(state, { video: null, ended: false, queue: [], shown: 0, tapped: null });
  say("");
  play(true);
}

function heat(temperature) {
  at("temperature").value = temperature;
  at("degrees").textContent = Number(at("temperature").value).toFixed(2);
}

function pictures(bytes) {
  const size = about.width * about.height, made = [];
  for (let from = 0; from < bytes.length; from += 3 * size) {
    const image = new ImageData(about.width, about.height);
    for (let i = 0, o = 0, b = from; i < size; i += 1) {
      image.data[o++] = bytes[b++];
      image.data[o++] = bytes[b++];
      image.data[o++] = bytes[b++];
      image.data[o++] = 255;
    }
    made.push(image);
  }
  return made;
}

async function drawMore() {
  const mine = age, label = at("label").value;
  state.asking = true;
  try {
    if (state.video === null) {
      const wish = { seed: Number(at("seed").value), label: label === "" ? null : Number(label) };
      const { video } = await (await ask("/begin", wish)).json();
      if (mine !== age) return;
      state.video = video;
    }
    const action = state.held[0] ?? state.tapped ?? about.rest, began = performance.now();
    state.tapped = null;
    const wish = { video: state.video, action, temperature: Number(at("temperature").value) };
    const answer = await ask("/frames", wish);
    const images = pictures(new Uint8Array(await answer.arrayBuffer()));
    if (mine !== age) return;
    state.queue.push(...images);
    state.ended = images.length === 0;
    const now = images.length / Math.max(1e-3, (performance.now() - began) / 1000);
    state.perSecond = state.perSecond ? 0.7 * state.perSecond + 0.3 * now : now;
  } catch (error) {
    if (mine !== age) return;
    play(false);
    say(error instanceof TypeError ? "The player does not answer; its terminal says why."
      : error.message);
  } finally {
    state.asking = false;
  }
}

function tick(now) {
  // Where drawing is slower than the video, it is shown as slowly, but without halts.
  const rate = Math.min(about.fps, state.perSecond || about.fps);
  if (state.playing && state.queue.length && now >= state.due) {
    pencil.putImageData(state.queue.shift(), 0, 0);
    state.due = Math.max(state.due + 1000 / rate, now - 1000 / rate);
    state.shown += 1;
    canvas.dataset.shown = state.shown;
    at("speed").textContent = `frame ${state.shown} · shown at ${rate.toFixed(1)} frames/s,`
      + ` drawn at ${state.perSecond.toFixed(1)}`;
  }
  if (state.ended && !state.queue.length) restart(Number(at("seed").value) + 1);
  if (state.playing && !state.asking && !state.ended && state.queue.length <= about.ahead) {
    drawMore();
  }
  requestAnimationFrame(tick);
}

function hold(action, isDown) {
  const others = state.held.filter((held) => held !== action);
  if (!isDown && others.length < state.held.length) state.tapped ??= action;
  if (isDown) state.tapped = action;
  state.held = isDown ? [action, ...others] : others;
  for (const button of at("actions").children) {
    button.classList.toggle("held", state.held.includes(Number(button.value)));
  }
}

const keyActions = new Map();
about.actions.forEach(({ name, keys }, action) => {
  for (const key of keys) keyActions.set(key.toLowerCase(), action);
  const button = Object.assign(document.createElement("button"), { type: "button", value: action });
  button.textContent = ARROWS[name] ?? name;
  button.hidden = keys.length === 0;
  button.addEventListener("pointerdown", () => hold(action, true));
  for (const end of ["pointerup", "pointerleave"]) {
    button.addEventListener(end, () => hold(action, false));
  }
  at("actions").append(button);
});
about.labels.forEach((name, place) => at("label").append(new Option(name, place)));

function press(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, select")) {
    return;
  }
  const { key } = event, action = keyActions.get(key.toLowerCase());
  if (action !== undefined) {
    if (!event.repeat) hold(action, true);
  } else if (key === " ") {
    if (!event.repeat) play(!state.playing);
  } else if (key === "r") {
    restart(Number(at("seed").value));
  } else if (key in SEED_STEPS) {
    restart(Number(at("seed").value) + SEED_STEPS[key]);
  } else if (key in HEAT_STEPS) {
    heat(Number(at("temperature").value) + 0.05 * HEAT_STEPS[key]);
  } else {
    return;
  }
  event.preventDefault();
}

addEventListener("keydown", press);
addEventListener("keyup", ({ key }) => {
  const action = keyActions.get(key.toLowerCase());
  if (action !== undefined) hold(action, false);
});
addEventListener("blur", () => [...state.held].forEach((action) => hold(action, false)));
at("toggle").addEventListener("click", (event) => {
  event.currentTarget.blur();  // Else the space bar would press it again.
  play(!state.playing);
});
at("again").addEventListener("click", (event) => {
  event.currentTarget.blur();
  restart(Number(at("seed").value));
});
for (const id of ["seed", "label"]) {
  at(id).addEventListener("change", (event) => {
    event.currentTarget.blur();
    restart(Number(at("seed").value));
  });
}
at("temperature").addEventListener("input", (event) => heat(event.currentTarget.value));
at("temperature").addEventListener("change", (event) => event.currentTarget.blur());

function tell(keys, what) {
  if (at("keys").hasChildNodes()) at("keys").append(" · ");
  for (const key of keys) {
    at("keys").append(Object.assign(document.createElement("kbd"), { textContent: key }), " ");
  }
  at("keys").append(what);
}

[canvas.width, canvas.height] = [about.width, about.height];
canvas.style.setProperty("--shape", about.width / about.height);
at("name").textContent = about.name;
document.title = `${about.name} · mebt play`;
at("label-row").hidden = about.labels.length === 0;
at("actions").hidden = about.actions.length === 0;
tell(["space"], "play or pause");
tell(["R"], "restart");
const isNamed = ({ name, keys }) => keys.length && name !== keys[0];
const shown = (key) => ARROWS[key] ?? key;
about.actions.filter(isNamed).forEach(({ name, keys }) => tell(keys.map(shown), name));
const others = about.actions.filter((action) => action.keys.length && !isNamed(action));
if (others.length) tell(others.map(({ name }) => shown(name)), "actions");
if (!keyActions.has("arrowleft")) tell(["←", "→"], "another seed");
if (!keyActions.has("arrowup")) tell(["↑", "↓"], "temperature");
requestAnimationFrame(tick);
