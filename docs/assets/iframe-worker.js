// Browsers start no workers on pages that are opened from a file. The search then runs in a hidden frame instead.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      this.waiting = []; // messages until the script has run
      document.addEventListener("DOMContentLoaded", () => this.start(frame, url));
      if (document.readyState !== "loading") this.start(frame, url);
    }

    start(frame, url) {
      if (this.frame) return;
      this.frame = document.body.appendChild(frame);
      const inside = frame.contentWindow;
      inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      inside.importScripts = (...urls) => Promise.all(urls.map((one) => this.load(one)));
      this.load(url).then(() => this.waiting.splice(0).forEach((data) => this.postMessage(data)));
    }

    load(url) {
      const script = this.frame.contentDocument.createElement("script");
      script.src = new URL(url, location.href);
      const loaded = new Promise((resolve) => script.addEventListener("load", resolve));
      this.frame.contentDocument.body.append(script);
      return loaded.then(() => (this.ready = true));
    }

    postMessage(data) {
      if (!this.ready) this.waiting.push(data);
      else this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data }));
    }
  };
}
