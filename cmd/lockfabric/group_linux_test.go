package main

import "testing"

// Nobody renews the lock any more, so the command is told to end.
func TestKilledRunEndsItsCommand(t *testing.T) {
	t.Parallel()
	p := start(t, lockfabric(t, "run", "k", "--", self(t), "child", "TERM"))
	pid := p.ready()
	killLater(t, pid)
	if err := p.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	p.expect("got TERM")
	p.exits(-1)
}
