"use strict";
// The operator's page. It looks at the gateway several times a second, shows what is due, and sends what is done.

const $ = (id) => document.getElementById(id);
const LOOK = 400, LOOK_RUNNING = 200, LOOK_LOGIN = 2000, PATIENCE = 2500; // ms
const PICTURE = 200, PICTURE_AGAIN = 1000; // ms
const PHASES = {
  none: ["No trials", "wait", "No plan has come yet. This page shows it when it does."],
  asked: ["New plan", "wait", "Read it. Then begin, or refuse."],
  scene: ["Lay out the scene", "wait", "Then say so."],
  ready: ["Ready", "arm", "Stand clear. Arm, and the robot moves."],
  starting: ["Starting", "arm", "The policy is asked whether it is there. The robot is about to move."],
  homing: ["Going home", "run", "The robot moves."],
  running: ["Running", "run", "The robot moves. Keep a hand on the stop."],
  label: ["Label", "label", "The robot stands. What came of it?"],
  done: ["The trials are over", "over", "Thank you. There is nothing more to do."],
  refused: ["Refused", "over", "You refused these trials."],
  login: ["Who is there?", "wait", ""],
  watch: ["Watching", "over", ""],
};
const ACTIONS = {
  asked: ["accept", "refuse"],
  scene: ["confirm", "home", "pause", "refuse"],
  ready: ["arm", "home", "pause", "refuse"],
  running: ["succeeded"],
};
const MOVES = ["arm", "home"]; // their answer may take a while
const MAY = { Enter: ["accept", "confirm"], a: ["arm"], h: ["home"], p: ["pause"], r: ["refuse"], y: ["succeeded"] };
const QUESTIONS = {
  refuse: ["Why do you refuse?", "Refuse the trials"],
  pause: ["Why do you pause?", "Pause"],
  invalid: ["Why does it not count?", "It does not count"],
};

const page = sessionStorage.page ??= Array.from(crypto.getRandomValues(new Uint8Array(12)), (n) => n.toString(16).padStart(2, "0")).join("");
let view = null, phase = "loading", due = "", question = "", sending = "", camera = "", ghostOn = true, ran = 0;
let looks = 0, newest = 0, trouble = "";

// ---------------------------------------------------------------------------------------------- talking

async function send(method, path, body, patience = PATIENCE) {
  const answer = await fetch(path, {
    method, headers: { "Content-Type": "application/json", "X-Wovr-Page": "1" },
    body: JSON.stringify(body ?? {}), signal: AbortSignal.timeout(patience), cache: "no-store",
  });
  if (answer.ok) return answer.status === 204 ? null : answer.json();
  let words = `The gateway answers ${answer.status}.`;
  try {
    const problem = await answer.json();
    words = typeof problem.detail === "string" ? problem.detail : problem.detail.map((one) => one.msg).join("; ");
  } catch { /* no words */ }
  throw Object.assign(new Error(words), { status: answer.status });
}

async function look() {
  const mine = ++looks;
  try {
    // a page that nobody sees must not keep an arm moving: its stop cannot be reached
    const seen = await send("POST", "/operator/look", { page, hold: !document.hidden });
    if (mine < newest || (sending && !MOVES.includes(sending))) return; // what is shown next also takes keys
    newest = mine;
    view = seen;
    connected(true);
    if ($("error").textContent === trouble) complain("");
    trouble = "";
    show();
  } catch (error) {
    connected(Boolean(error.status));
    if (error.status === 401) { view = null; enter("login"); }
    else if (error.status) complain(trouble = error.message);
  }
}

async function keepLooking() {
  for (;;) {
    await look();
    await new Promise((after) => setTimeout(after, { running: LOOK_RUNNING, login: LOOK_LOGIN }[phase] ?? LOOK));
  }
}

async function act(name, more = {}) {
  if ((sending && name !== "succeeded") || !view) return false; // to end a motion waits for nothing
  sending = name;
  complain("");
  show();
  try {
    const at = name === "home" ? {} : { id: view.id };
    const trial = ["confirm", "arm", "succeeded", "label"].includes(name) ? { trial: view.trial, attempt: view.attempt } : {};
    await send("POST", `/operator/${name}`, { page, ...at, ...trial, ...more }, MOVES.includes(name) ? 60000 : 8000);
    return true;
  } catch (error) {
    if (!error.status) connected(false);
    complain(error.status ? error.message : "No answer: look at what the page shows next before you try again.");
    return false;
  } finally {
    if (sending === name) sending = "";
    await look();
  }
}

async function stop() {
  try {
    await send("POST", "/operator/stop", null, 4000);
    complain("");
  } catch (error) {
    if (!error.status) connected(false);
    complain(error.status ? error.message : "The stop did not reach the robot. Use the stop beside it.");
  }
  look();
}

function stayAwake() { // a phone that goes dark lets go of the robot; only where the page came by https
  if (!document.hidden) navigator.wakeLock?.request("screen").catch(() => {});
}

function connected(yes) { $("lost").hidden = yes; document.body.dataset.connected = yes ? "yes" : "no"; }
function complain(words) { $("error").hidden = !words; $("error").textContent = words; }

// ---------------------------------------------------------------------------------------------- showing

function enter(next) {
  const [title, kind, todo] = PHASES[next], changed = phase !== next;
  $("login").hidden = next !== "login";
  $("desk").hidden = next === "login";
  $("stopbar").hidden = next === "login";
  $("leave").hidden = next === "login";
  if (!changed) return;
  phase = next;
  document.body.dataset.phase = next;
  document.body.dataset.look = kind;
  $("state").textContent = title;
  $("todo").textContent = todo;
  document.title = `${title} – robot trials`;
  scrollTo(0, 0);
  if (next === "login") $("person").focus(); else $("state").focus({ preventScroll: true });
}

function show() {
  if (!view) return;
  if (moving()) question = "";
  const now = `${view.id}/${view.trial}/${view.attempt}/${view.phase}`;
  if (now !== due) { due = now; fresh(); }
  enter(view.mine || ["none", "done", "refused"].includes(view.phase) ? view.phase : "watch");
  if (phase === "watch") {
    $("todo").textContent = view.holder
      ? `${view.holder} has the controls on another page or in a program. You may watch, and stop.`
      : "Nobody has the controls.";
  }
  if (phase === "ready") $("todo").textContent = PHASES.ready[2];
  if (phase === "scene") {
    $("todo").textContent = view.paused ? `Paused: ${view.paused}` : view.second
      ? "As it was for the first trial of this pair: match it with the overlay."
      : "Place everything anew. The next trial starts from the same scene.";
  }
  const words = troubleOf(view.robot);
  if (words && ["scene", "ready"].includes(phase)) $("todo").textContent = words;
  if (phase === "running") {
    const seconds = Math.round((Date.now() - ran) / 1000);
    $("todo").textContent = `The robot moves. ${seconds} s of about ${Math.round(view.seconds)}. Keep a hand on the stop.`;
  }
  if (phase === "label") {
    $("todo").textContent = { stopped: "You stopped it. ", horizon: "Its time is over. ", success: "You saw it succeed. " }[view.ended]
      + "The robot stands. What came of it?";
  }
  facts();
  buttons();
  ghost();
}

function troubleOf(robot) {
  return {
    lost: `The robot does not answer. ${robot.words}`,
    reflex: `The robot stopped itself: ${robot.words}. Look at it, then arm.`,
  }[robot.mode] ?? robot.words;
}

function facts() {
  const open = view.id && !["done", "refused"].includes(view.phase);
  $("who").textContent = view.mine ? `${view.person} has the controls` : view.person;
  $("task").hidden = !open;
  $("plan").hidden = !open;
  $("count").textContent = `Trial ${view.trial + 1} of at most ${view.trials}${view.attempt ? `, made again (${view.attempt + 1})` : ""}`;
  $("instruction").textContent = view.instruction;
  $("notice").hidden = !view.notice;
  $("notice").textContent = view.notice;
  $("pairs").max = view.pairs || 1;
  $("pairs").value = view.pairs_done;
  $("pairs-words").textContent = `${view.pairs_done} of at most ${view.pairs} pairs`;
  $("power").textContent = view.power;
  if (view.cameras.join() !== $("cameras").dataset.names) {
    $("cameras").dataset.names = view.cameras.join();
    camera = view.cameras[0] ?? "";
    $("cameras").replaceChildren(...(view.cameras.length < 2 ? [] : view.cameras.map((name) => {
      const button = Object.assign(document.createElement("button"), { type: "button", textContent: name });
      button.onclick = () => { camera = name; cameraButtons(); ghost(); };
      return button;
    })));
    cameraButtons();
  }
}

function cameraButtons() {
  for (const one of $("cameras").children) one.setAttribute("aria-pressed", String(one.textContent === camera));
}

function buttons() {
  const may = view.mine && !question ? ACTIONS[phase] ?? [] : [];
  for (const button of document.querySelectorAll("#actions [data-do]")) {
    button.hidden = !may.includes(button.dataset.do);
    button.disabled = sending && button.dataset.do !== "succeeded";
  }
  $("label").hidden = !(phase === "label" && view.mine && !question);
  $("label").querySelectorAll("button").forEach((one) => { one.disabled = Boolean(sending); });
  $("why").hidden = !question;
}

function fresh() { // another trial, or another phase of it
  if (view.phase === "running") ran = Date.now();
  question = "";
  $("label").reset();
  $("milestones").replaceChildren(...["nothing of it", ...view.milestones].map((words, number, all) => {
    const label = Object.assign(document.createElement("label"), { className: "choice" });
    const input = Object.assign(document.createElement("input"), { type: "radio", name: "progress", value: number / (all.length - 1) });
    label.append(input, Object.assign(document.createElement("kbd"), { textContent: number }), ` ${words}`);
    return label;
  }));
  if (view.phase === "label" && view.ended === "success") choose("yes");
}

function ghost() {
  const due = view.ghost && ["scene", "ready"].includes(view.phase) && camera === view.cameras[0];
  $("overlay").hidden = !due;
  $("ghost").hidden = !due || !ghostOn;
  $("ghost").style.opacity = $("opacity").value / 100;
  const source = `/operator/ghost/${view.trial}?${view.id}`;
  if (due && $("ghost").getAttribute("src") !== source) $("ghost").src = source;
}

function keepPicturing() {
  const image = $("live");
  const next = (after) => setTimeout(() => {
    if (!view || !camera || document.hidden) { next(PICTURE_AGAIN); return; }
    image.src = `/operator/cameras/${encodeURIComponent(camera)}?${Date.now()}`;
  }, after);
  image.onload = () => { $("dark").hidden = true; next(PICTURE); };
  image.onerror = () => { $("dark").hidden = false; next(PICTURE_AGAIN); };
  next(0);
}

// ---------------------------------------------------------------------------------------------- doing

function choose(success) {
  document.querySelector(`#label [name=success][value=${success}]`).checked = true;
  const milestones = document.querySelectorAll("#label [name=progress]");
  const last = milestones[milestones.length - 1];
  if (success === "yes" && last) last.checked = true;
  if (success === "no" && last?.checked) last.checked = false;
}

function ask(name) {
  question = name;
  [$("why-label").textContent, $("why-go").textContent] = QUESTIONS[name];
  $("reason").value = "";
  show();
  $("reason").focus();
}

function saveLabel() {
  const form = new FormData($("label"));
  if (!form.get("success")) { complain("Say first whether it succeeded: Y or N."); return; }
  act("label", {
    success: form.get("success") === "yes",
    progress: form.has("progress") ? Number(form.get("progress")) : null,
    interventions: Number($("interventions").value) || 0,
    note: $("note").value,
  });
}

function step(name) {
  if (name in QUESTIONS) ask(name); else act(name);
}

async function answerQuestion() {
  const name = question, reason = $("reason").value.trim(), at = due;
  if (!reason) return;
  question = "";
  const done = name === "invalid"
    ? await act("label", { invalid: reason, note: $("note").value, interventions: Number($("interventions").value) || 0 })
    : await act(name, { reason });
  if (!done && at === due && !moving()) { ask(name); $("reason").value = reason; }
}

function typing(target) {
  return target instanceof HTMLInputElement && !["radio", "range"].includes(target.type);
}

function moving() {
  return ["starting", "homing", "running"].includes(view?.phase);
}

function onKey(event) {
  if (!view) return;
  if (event.key === " " && (moving() || sending || !typing(event.target))) {
    event.preventDefault(); // a button that has the focus is not pressed by it
    event.stopPropagation();
    if (event.type === "keydown" && !event.repeat) stop();
    return;
  }
  if (event.type !== "keydown" || event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Escape") {
    if (question) { question = ""; show(); $("state").focus(); } else if (typing(event.target)) event.target.blur();
    return;
  }
  if (typing(event.target) || question || !view.mine) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (key === "Enter" && event.target instanceof HTMLButtonElement) return; // presses that button
  if (labelKey(key)) { event.preventDefault(); return; }
  const name = (MAY[key] ?? []).find((one) => (ACTIONS[phase] ?? []).includes(one));
  if (name) { event.preventDefault(); step(name); }
  if (key === "g" && view.ghost) { ghostOn = !ghostOn; ghost(); }
}

function labelKey(key) {
  if (phase !== "label") return false;
  const milestones = document.querySelectorAll("#label [name=progress]");
  const helped = $("interventions");
  if (key === "y") choose("yes");
  else if (key === "n") choose("no");
  else if (/^[0-9]$/.test(key) && milestones[key]) milestones[key].checked = true;
  else if (key === "+" || key === "-") helped.value = Math.max(0, Number(helped.value) + (key === "+" ? 1 : -1));
  else if (key === "t") $("note").focus();
  else if (key === "i") ask("invalid");
  else if (key === "Enter") saveLabel();
  else return false;
  return true;
}

document.addEventListener("keydown", onKey, true);
document.addEventListener("keyup", onKey, true);
document.addEventListener("visibilitychange", () => { look(); stayAwake(); });
$("stop").addEventListener("click", stop);
$("opacity").addEventListener("input", () => { ghostOn = true; ghost(); });
$("label").addEventListener("submit", (event) => { event.preventDefault(); saveLabel(); });
$("label").addEventListener("change", (event) => { if (event.target.name === "success") choose(event.target.value); });
$("why").addEventListener("submit", (event) => { event.preventDefault(); answerQuestion(); });
$("why-back").addEventListener("click", () => { question = ""; show(); });
for (const button of document.querySelectorAll("[data-do]")) button.addEventListener("click", () => step(button.dataset.do));
$("leave").addEventListener("click", async () => {
  await send("POST", "/operator/leave", { page }).catch(() => {});
  look();
});
$("login").addEventListener("submit", async (event) => {
  event.preventDefault();
  complain("");
  try {
    await send("POST", "/operator/session", { key: $("key").value, person: $("person").value.trim() }, 8000);
    $("key").value = "";
  } catch (error) { complain(error.status ? error.message : "The gateway does not answer."); }
  look();
});
keepLooking();
keepPicturing();
stayAwake();
