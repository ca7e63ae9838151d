// Before the first paint, so that a chosen appearance does not flash.
try {
  document.documentElement.dataset.theme = localStorage.getItem("glmlite.theme") || "system";
} catch {
  // A browser that keeps no data.
}
