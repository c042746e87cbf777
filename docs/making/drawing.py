def on_source(app, page, source): pass
