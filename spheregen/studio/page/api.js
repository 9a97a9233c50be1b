// The server's answers: JSON, and streams of it.

async function refuse(response) {
  let message = `${response.status} ${response.statusText}`;
  const text = await response.text();
  try {
    message = JSON.parse(text).error ?? message;
  } catch {
    message = text.split("\n")[0].slice(0, 200) || message;
  }
  throw new Error(message);
}

async function ask(address, options = {}) {
  let response;
  try {
    response = await fetch(address, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The studio does not answer. Is it still running?");
  }
  return response.ok ? response : refuse(response);
}

export async function about() {
  return (await ask("api/model")).json();
}

export async function upload(file) {
  return (await ask(`api/image?name=${encodeURIComponent(file.name)}`, { method: "POST", body: file })).json();
}

/** Every event of a request, as it comes: {waiting}, {step, steps, images} and, last, {images, command, …}. */
export async function* make(name, body, signal) {
  const headers = { "Content-Type": "application/json" };
  const response = await ask(`api/${name}`, { method: "POST", headers, body: JSON.stringify(body), signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    let part;
    try {
      part = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Error("The studio stopped answering.");
    }
    if (part.done) break;
    const lines = (text + part.value).split("\n");
    text = lines.pop();
    for (const line of lines) {
      const event = JSON.parse(line);
      if (event.error) throw new Error(event.error);
      yield event;
    }
  }
}
