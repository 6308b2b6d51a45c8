//go:build unix

package main

import (
	"strings"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/lockfabric/lockfabric/fabric"
)

// serve --shards makes the fabric so, and refuses one that is otherwise.
func TestServeShards(t *testing.T) {
	t.Parallel()
	store := t.TempDir()
	serve := func(n string) *proc {
		return start(t, bare(t, "--output", "json", "serve", "--store", store, "--listen", "127.0.0.1:0", "--sync", "1s", "--log-level", "error", "--shards", n))
	}
	p := serve("3")
	ready := p.serving()
	nc, err := nats.Connect(ready.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	m, err := fabric.New(t.Context(), nc)
	if err != nil {
		t.Fatal(err)
	}
	if m.Shards() != 3 {
		t.Errorf("%d shards", m.Shards())
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	p.signal(killable)
	p.exits(0)
	p = serve("2")
	p.exits(exitUnavailable)
	if said := p.err.String(); !strings.Contains(said, "is of a fabric of 3, not of 2") {
		t.Errorf("said %q", said)
	}
}
