//go:build unix

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"

	"github.com/lockfabric/lockfabric/fabric"
)

// serve becomes the coalescer of a fabric whose clients ask for one, as `nats micro info lockfabric`
// shows, and hands over when it ends.
func TestServeCoalesces(t *testing.T) {
	t.Parallel()
	for _, flags := range [][]string{{}, {"--no-coalesce"}} {
		p := start(t, bare(t, append([]string{"--output", "json", "serve", "--store", t.TempDir(), "--listen", "127.0.0.1:0", "--sync", "1s", "--log-level", "error"}, flags...)...))
		ready := p.serving()
		nc, err := nats.Connect(ready.URL)
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		m, err := fabric.New(t.Context(), nc, fabric.WithFabric("served"))
		if err != nil {
			t.Fatal(err)
		}
		found := func() (rank string) {
			if err := nc.Publish("lf.served.0.hello", nil); err != nil {
				t.Fatal(err)
			}
			msg, err := nc.Request("$SRV.INFO.lockfabric", nil, 100*time.Millisecond)
			if err != nil {
				return ""
			}
			var info micro.Info
			if err := json.Unmarshal(msg.Data, &info); err != nil {
				t.Fatal(err)
			}
			return info.Metadata["rank"]
		}
		if len(flags) == 0 {
			eventually(t, "the server serves", func() bool { return found() == "3" })
			asked := []string{"--server", ready.URL, "--fabric", "served", "inspect", "k"}
			code, text, _ := run(t, bare(t, asked...))
			if want := fmt.Sprintf(" pid %d, of rank 3\n", p.cmd.Process.Pid); code != 0 || !strings.Contains(text, "coalescer:") || !strings.Contains(text, want) {
				t.Errorf("inspect: exit code %d, no %q in %q", code, want, text)
			}
			w := start(t, bare(t, append(asked, "--watch")...))
			if _, line := w.line(), w.line(); !strings.HasPrefix(line, "coalescer:") {
				t.Errorf("inspect --watch: %q after the state", line)
			}
			w.signal(os.Interrupt)
			w.exits(0)
		} else if rank := found(); rank != "" {
			t.Errorf("somebody of rank %q serves", rank)
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
		p.signal(killable)
		p.exits(0)
	}
}
