//go:build unix

package main

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

var rollingRounds = flag.Int("rolling-rounds", 0, "rounds of TestRollingRestart, three restarts each; 0: one restart")

// fixedAddrs returns addresses that stay free while nobody listens there: their ports
// are none that the system gives to outgoing connections.
func fixedAddrs(t *testing.T, n int) (addrs []string) {
	t.Helper()
	for port := 20000 + rand.IntN(5000); len(addrs) < n && port < 32000; port++ {
		addr := fmt.Sprintf("127.0.0.1:%d", port)
		if l, err := net.Listen("tcp", addr); err == nil {
			_ = l.Close()
			addrs = append(addrs, addr)
		}
	}
	if len(addrs) < n {
		t.Fatal("no free ports")
	}
	return addrs
}

// A cluster is restarted server by server, as docs/serving.md says, while short runs
// come one after the other: none of them fails.
func TestRollingRestart(t *testing.T) {
	t.Parallel()
	addrs := fixedAddrs(t, 6)
	addrs, routes := addrs[:3], addrs[3:]
	dir := t.TempDir()
	serve := func(i int) *proc {
		p, _ := startServe(t, nil, "--store", filepath.Join(dir, fmt.Sprint(i)), "--listen", addrs[i], "--name", fmt.Sprintf("node%d", i),
			"--cluster-listen", routes[i], "--routes", strings.Join(routes, ","), "--sync", "1s")
		return p
	}
	var nodes []*proc
	for i := range 3 {
		nodes = append(nodes, serve(i))
	}
	servers := "nats://" + strings.Join(addrs, ",nats://")
	current := func() bool {
		d := diagnose(t, bare(t, "--server", servers, "--output", "json", "doctor", "--no-probe"))
		return d.OK && len(d.Fabric.Buckets) == 2
	}
	eventually(t, "lock from the cluster", func() bool {
		code, _, _ := run(t, bare(t, "--server", servers, "run", "first", "--", "true"))
		return code == 0
	})

	var done atomic.Bool
	var loops sync.WaitGroup
	var runs atomic.Int64
	for loop := range 2 {
		loops.Go(func() {
			for i := 0; !done.Load(); i++ {
				code, _, stderr := run(t, bare(t, "--server", servers, "--timeout", "30s", "run", fmt.Sprintf("job-%d/%d", loop, i%7), "--", "true"))
				runs.Add(1)
				if code != 0 {
					t.Errorf("run %d of loop %d: exit code %d: %s", i, loop, code, stderr)
				}
			}
		})
	}
	for n := range max(1, 3**rollingRounds) {
		i := n % 3
		eventually(t, "all replicas current", current)
		nodes[i].signal(killable)
		nodes[i].exits(0)
		nodes[i] = serve(i)
	}
	eventually(t, "all replicas current", current)
	done.Store(true)
	loops.Wait()
	t.Logf("%d runs", runs.Load())
}
