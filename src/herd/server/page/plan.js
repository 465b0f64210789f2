// The page at /plan: sliders, and the plan that the server makes for them (the same functions as `herd plan`). The address holds what
// was chosen, so that a plan can be sent to somebody.
"use strict";

const form = document.getElementById("asked");
const problem = document.getElementById("problem");
const shown = document.getElementById("answer");
let longest = new Map();

// Sliders count in powers: from the first to the last of these, 100 steps.
const RANGES = {
  context: [512, () => longest.get(form.model.value) || 131072],
  users: [1, () => 10000],
  prompt_tokens: [64, () => valueOf("context")],
  answer_tokens: [16, () => 8192],
};

function valueOf(name) {
  const [low, high] = RANGES[name], most = Math.max(high(), low);
  const value = low * (most / low) ** (form[name].value / 100);
  return value < 100 ? Math.round(value) : Math.min(most, Number(value.toPrecision(2)));
}

function stepOf(name, value) {
  const [low, high] = RANGES[name];
  return Math.round((100 * Math.log(Math.max(value, low) / low)) / Math.log(Math.max(high() / low, 1.001)));
}

function asked() {
  const query = new URLSearchParams();
  for (const name of ["model", "quant", "cache", "device"]) if (form[name].value) query.set(name, form[name].value);
  for (const name of Object.keys(RANGES)) query.set(name, valueOf(name));
  return query;
}

function tell() {
  for (const name of Object.keys(RANGES)) form.querySelector(`output[for=${name}]`).value = valueOf(name).toLocaleString();
}

let number = 0;

async function plan() {
  tell();
  const query = asked(), mine = ++number;
  history.replaceState(null, "", `/plan?${query}`);
  shown.classList.add("stale");
  try {
    const response = await fetch(`/plan/answer?${query}`);
    const text = await response.text();
    if (mine !== number) return;
    if (!response.ok) throw new Error(JSON.parse(text).error.message);
    shown.innerHTML = text; // written and escaped by the server
    problem.hidden = true;
  } catch (error) {
    if (mine !== number) return;
    problem.textContent = error.message;
    problem.hidden = false;
    shown.replaceChildren();
  } finally {
    if (mine === number) shown.classList.remove("stale");
  }
}

let waiting = 0;

function soon() {
  tell();
  clearTimeout(waiting);
  waiting = setTimeout(plan, 150);
}

async function begin() {
  const choices = await (await fetch("/plan/choices")).json();
  longest = new Map(choices.models.map((each) => [each.name, each.context]));
  form.model.append(...choices.models.map((each) => new Option(each.name)));
  form.quant.append(...choices.quants.map((each) => new Option(each)));
  form.device.append(...choices.devices.map((each) => new Option(each.title, each.name)));
  const given = new URLSearchParams(location.search);
  form.model.value = given.get("model") || "llama-3.1-8b-instruct";
  form.quant.value = given.get("quant") || "q4_0";
  form.device.value = given.get("device") || "";
  form.cache.value = given.get("cache") || "f16";
  const first = { context: 8192, users: 1, prompt_tokens: 1024, answer_tokens: 256 };
  for (const name of Object.keys(RANGES)) form[name].value = stepOf(name, Number(given.get(name)) || first[name]);
  form.addEventListener("input", soon);
  plan();
}

form.addEventListener("submit", (event) => event.preventDefault());
begin();
