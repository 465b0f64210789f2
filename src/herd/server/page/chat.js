// The page at /: a chat with the models of this server, by the same routes that any client uses. What models say is put in as text,
// never as HTML.
"use strict";

const $ = (id) => document.getElementById(id);
const turns = [];
let running = null;

function headers() {
  const key = $("key").value.trim();
  return { "content-type": "application/json", ...(key ? { authorization: `Bearer ${key}` } : {}) };
}

function show(problem) {
  $("problem").hidden = !problem;
  $("problem").textContent = problem || "";
}

async function said(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `The server answered ${response.status}.`;
  }
}

let models = [];

async function loadModels() {
  try {
    const response = await fetch("/v1/models", { headers: headers() });
    if (!response.ok) throw new Error(await said(response));
    models = (await response.json()).data;
    const chosen = $("model").value;
    $("model").replaceChildren(...models.map((each) => new Option(each.id, each.id, false, each.id === chosen)));
    show("");
  } catch (problem) {
    show(`${problem.message}${/key/i.test(problem.message) ? " Put it under Settings." : ""}`);
  }
  offerPictures();
}

function offerPictures() {
  const model = models.find((each) => each.id === $("model").value);
  $("picture-label").hidden = !model?.details?.sees_pictures;
}

function turnElement(role, content) {
  const element = document.createElement("div");
  element.className = `turn ${role}`;
  for (const part of typeof content === "string" ? [{ type: "text", text: content }] : content) {
    if (part.type === "image_url") {
      const image = document.createElement("img");
      image.src = part.image_url.url;
      image.alt = "the picture that was sent";
      element.append(image);
    } else {
      element.append(part.text);
    }
  }
  $("turns").append(element);
  return element;
}

const asDataUrl = (file) =>
  new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error("The picture could not be read."));
    reader.readAsDataURL(file);
  });

async function question() {
  const text = $("text").value;
  const file = $("picture-label").hidden ? null : $("picture").files[0];
  if (!file) return text;
  return [{ type: "image_url", image_url: { url: await asDataUrl(file) } }, { type: "text", text }];
}

function asked() {
  const system = $("system").value.trim();
  const body = {
    model: $("model").value,
    messages: [...(system ? [{ role: "system", content: system }] : []), ...turns],
    stream: true,
    stream_options: { include_usage: true },
  };
  if ($("temperature").value !== "") body.temperature = Number($("temperature").value);
  if ($("max-tokens").value !== "") body.max_completion_tokens = Number($("max-tokens").value);
  return body;
}

// The data of the server's events, one after another.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += value;
    for (let end; (end = rest.indexOf("\n\n")) >= 0; rest = rest.slice(end + 2)) {
      const data = rest.slice(0, end).split("\n").filter((line) => line.startsWith("data: ")).map((line) => line.slice(6)).join("\n");
      if (data === "[DONE]") return;
      if (data) yield JSON.parse(data);
    }
  }
}

async function answer() {
  running = new AbortController();
  const element = turnElement("assistant", "");
  const began = performance.now();
  let text = "", first = 0;
  try {
    const response = await fetch("/v1/chat/completions", {
      method: "POST", headers: headers(), body: JSON.stringify(asked()), signal: running.signal,
    });
    if (!response.ok) throw new Error(await said(response));
    for await (const event of events(response)) {
      if (event.error) throw new Error(event.error.message);
      const piece = event.choices[0]?.delta?.content;
      if (piece) {
        first = first || performance.now();
        text += piece;
        element.append(piece);
        if (innerHeight + scrollY > document.body.scrollHeight - 120) scrollTo(0, document.body.scrollHeight);
      }
      if (event.usage && first) {
        const seconds = (performance.now() - first) / 1000, count = event.usage.completion_tokens;
        const rate = count > 1 && seconds > 0 ? `, ${((count - 1) / seconds).toFixed(1)} tokens/s` : "";
        $("speed").textContent = `${count} tokens, first after ${((first - began) / 1000).toFixed(2)} s${rate}`;
      }
    }
  } catch (problem) {
    if (problem.name !== "AbortError") throw problem;
    element.append(" (stopped)");
  } finally {
    running = null;
    if (text) turns.push({ role: "assistant", content: text });
    else element.remove();
  }
}

function busy(on) {
  $("send").disabled = on;
  $("stop").disabled = !on;
}

async function send(event) {
  event.preventDefault();
  if (running || !$("text").value.trim()) return;
  show("");
  busy(true);
  try {
    const content = await question();
    turns.push({ role: "user", content });
    const element = turnElement("user", content);
    try {
      await answer();
      $("text").value = $("picture").value = "";
    } catch (problem) {
      turns.pop();
      element.remove();
      throw problem;
    }
  } catch (problem) {
    show(problem.message);
  } finally {
    busy(false);
    $("text").focus();
  }
}

$("ask").addEventListener("submit", send);
$("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) send(event);
});
$("stop").addEventListener("click", () => running?.abort());
$("fresh").addEventListener("click", () => {
  running?.abort();
  turns.length = 0;
  $("turns").replaceChildren();
  $("speed").textContent = "";
  show("");
});
$("key").addEventListener("change", loadModels);
$("model").addEventListener("change", offerPictures);
loadModels();
