"""One file per published study; none holds a loop, a hook or a plot."""
