"""The static page that shows a dataset in a browser; `page/` has its scripts and styles."""
