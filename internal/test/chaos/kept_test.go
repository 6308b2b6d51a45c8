package chaos_test

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/lockfabric/lockfabric/fabric"
)

var killedKept = flag.Int("kept.killed", 50, "how many locks a process keeps that is killed")

// keeperEnv makes the test binary a process that keeps locks. Its value is "<url> <number>".
const keeperEnv = "LOCKFABRIC_TEST_KEEPER"

// keptTTL is that of the process. None of its locks may be lost while they are looked at.
const keptTTL = 5 * time.Second

func keptName(i int) string { return fmt.Sprintf("kept/%d", i) }

// keeper keeps its locks unused, prints "kept" and the bytes that each takes, and waits for the end of its input.
func keeper() int {
	var url string
	var n int
	ctx := context.Background()
	_, err := fmt.Sscan(os.Getenv(keeperEnv), &url, &n)
	var m *fabric.Manager
	if err == nil {
		m, err = fabric.Connect(ctx, url, patiently, fabric.WithTTL(keptTTL), fabric.WithKeep(time.Hour))
	}
	begun := heap()
	for i := 0; i < n && err == nil; i++ {
		for kept := m.Stats().KeptJoins; err == nil && m.Stats().KeptJoins == kept; { // kept after the second use, as the third one shows
			err = m.Do(ctx, keptName(i), func(context.Context, *fabric.Lock) error { return nil })
		}
	}
	if err != nil {
		fmt.Println("error", err)
		return 1
	}
	time.Sleep(time.Second) // until all are watched
	fmt.Println("kept", (int64(heap())-int64(begun))/int64(n))
	_, _ = io.Copy(io.Discard, os.Stdin)
	return 0
}

// heap returns the bytes in use, once collections free nothing more.
func heap() uint64 {
	var m runtime.MemStats
	for range 2 {
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// K12: other processes get the kept locks of a killed process, like its used ones.
func TestK12_KilledWithKeptLocks(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	m, _ := one(t, s)
	within(t, keptTTL+keptTTL/20+2*time.Second, func() time.Duration {
		p := launchSelf(t, fmt.Sprintf("%s=%s %d", keeperEnv, s.ClientURL(), *killedKept))
		t.Logf("%s bytes of memory for each", p.expect("kept "))
		for i := range *killedKept {
			if info, err := m.Inspect(testContext(t), keptName(i)); err != nil || len(info.Holders) != 1 {
				t.Fatalf("%s: %+v, %v", keptName(i), info.Holders, err)
			}
		}
		killed := time.Now()
		p.kill()
		var all sync.WaitGroup
		for i := range *killedKept {
			all.Go(func() {
				l, err := m.Acquire(testContext(t), keptName(i))
				if err != nil {
					t.Errorf("%s: %v", keptName(i), err)
					return
				}
				release(t, l)
			})
		}
		all.Wait()
		return time.Since(killed)
	})
}
