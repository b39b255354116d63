// A page without maps: everything page.js needs.
start();
