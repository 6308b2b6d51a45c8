package benchmarks

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"

	"github.com/lockfabric/lockfabric/fabric"
)

// ttlAtRest is the TTL of what is only held. Its third is the time between two renewals.
const ttlAtRest = 15 * time.Second

// The columns of atRest.
const (
	writes       = "writes per TTL/3"
	others       = "other messages a minute"
	busy         = "CPU, % of a core"
	bytesOfOne   = "bytes each, client process"
	bytesOfOther = "bytes each, server"
)

// atRest counts what a process costs that holds many locks. Of one that waits for as many locks of another process only
// the memory is counted.
var atRest = part{"Of one process, which does nothing else", []string{writes, others, busy, bytesOfOne, bytesOfOther}, []row{
	{what: "lockfabric, 10,000 held locks", counts: resting(crowdAtRest{Rest: time.Minute})},
	{what: "lockfabric, 10,000 waiters", counts: resting(crowdAtRest{Wait: true})},
	{what: "etcd, 10,000 held locks", counts: resting(crowdAtRest{Etcd: true, Rest: 10 * time.Second})},
	{what: "etcd, 10,000 waiters", counts: resting(crowdAtRest{Etcd: true, Wait: true})},
}}

// crowdAtRest is what a process of its own is asked to hold, or to wait for.
type crowdAtRest struct {
	Etcd  bool
	Wait  bool // for locks that another process holds
	URL   []string
	Locks int
	Rest  time.Duration // that is measured; 0 = only the memory
}

// restOf is what that process reports.
type restOf struct {
	Bytes    float64 // of memory in use, for all locks
	Messages float64 // sent at rest
	CPU      time.Duration
}

const crowdVariable = "LOCKFABRIC_BENCHMARK_CROWD"

// TestMain is also the main function of the processes that are at rest.
func TestMain(m *testing.M) {
	text := os.Getenv(crowdVariable)
	if text == "" {
		os.Exit(m.Run())
	}
	var c crowdAtRest
	err := json.Unmarshal([]byte(text), &c)
	if err == nil {
		err = c.run()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// run acquires, says "there", and after each line that it reads reports what it was like since.
func (c *crowdAtRest) run() error {
	ctx := context.Background()
	lock, waiting, sent, err := c.connect(ctx)
	if err != nil {
		return err
	}
	before := inUse()
	failed, slots := make(chan error, c.Locks), make(chan struct{}, 64)
	var all sync.WaitGroup
	for i := range c.Locks {
		acquire := func() {
			if err := lock(ctx, fmt.Sprint("rest/", i)); err != nil {
				failed <- err
			}
		}
		if c.Wait {
			go acquire()
			continue
		}
		slots <- struct{}{}
		all.Go(func() { acquire(); <-slots })
	}
	all.Wait()
	for c.Wait && len(failed) == 0 {
		if n, err := waiting(); err != nil {
			return err
		} else if n == c.Locks {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	if len(failed) > 0 {
		return <-failed
	}
	fmt.Println("there")
	in, out := bufio.NewScanner(os.Stdin), json.NewEncoder(os.Stdout)
	for last, used := sent(), processor(); in.Scan(); last, used = sent(), processor() {
		report := restOf{Messages: sent() - last, CPU: processor() - used}
		report.Bytes = inUse() - before
		if err := out.Encode(report); err != nil {
			return err
		}
	}
	return in.Err()
}

// connect returns how this process acquires, how many of its acquires wait, and how many messages it has sent.
func (c *crowdAtRest) connect(ctx context.Context) (lock func(context.Context, string) error, waiting func() (int, error), sent func() float64, err error) {
	if !c.Etcd {
		nc, err := nats.Connect(c.URL[0])
		if err != nil {
			return nil, nil, nil, err
		}
		m, err := fabric.New(ctx, nc, fabric.WithTTL(ttlAtRest))
		if err != nil {
			return nil, nil, nil, err
		}
		lock = func(ctx context.Context, key string) error { _, err := m.Acquire(ctx, key); return err }
		return lock, func() (int, error) { return m.Stats().Waiting, nil }, func() float64 { return float64(nc.Stats().OutMsgs) }, nil
	}
	cl, err := clientv3.New(clientv3.Config{Endpoints: c.URL, DialTimeout: 10 * time.Second})
	if err != nil {
		return nil, nil, nil, err
	}
	session, err := concurrency.NewSession(cl, concurrency.WithTTL(int(ttlAtRest/time.Second)))
	if err != nil {
		return nil, nil, nil, err
	}
	lock = func(ctx context.Context, key string) error { return concurrency.NewMutex(session, key).Lock(ctx) }
	waiting = func() (int, error) {
		r, err := cl.Get(ctx, "rest/", clientv3.WithPrefix(), clientv3.WithCountOnly())
		if err != nil {
			return 0, err
		}
		return int(r.Count) - c.Locks, nil
	}
	return lock, waiting, func() float64 { return 0 }, nil
}

// inUse is the memory that this process uses after a collection.
func inUse() float64 {
	runtime.GC()
	runtime.GC() // what pools hold goes with the second one
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc + m.StackInuse)
}

// processor is the time that this process has used.
func processor() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// start returns how to ask the process what it was like since it was asked last.
func (c crowdAtRest) start(t testing.TB) (report func() restOf) {
	t.Helper()
	text, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env, cmd.Stderr = append(os.Environ(), crowdVariable+"="+string(text)), os.Stderr
	in, err1 := cmd.StdinPipe()
	out, err2 := cmd.StdoutPipe()
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	run(t, cmd)
	lines := bufio.NewScanner(out)
	if !lines.Scan() || lines.Text() != "there" {
		t.Fatalf("%+v ended: %q, %v", c, lines.Text(), lines.Err())
	}
	return func() (r restOf) {
		t.Helper()
		if _, err := fmt.Fprintln(in); err != nil {
			t.Fatal(err)
		}
		if !lines.Scan() {
			t.Fatalf("%+v ended: %v", c, lines.Err())
		}
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			t.Fatal(err)
		}
		return r
	}
}

// resting measures one crowd, with a server of its own.
func resting(c crowdAtRest) func(t testing.TB) map[string]float64 {
	return func(t testing.TB) map[string]float64 {
		c.Locks = 10_000
		if *table == "" {
			c.Locks, c.Rest = 100, c.Rest/1000
		}
		s := &servers{}
		if c.Etcd {
			s.etcd = startEtcd(t, 1, false)
		} else {
			s.startNATS(t, 1, false)
		}
		c.URL = slices.Concat(s.nats, s.etcd)
		if c.Wait {
			held := c
			held.Wait = false
			held.start(t)
		}
		ofServers := inUse()
		report := c.start(t)
		ofServers = inUse() - ofServers
		each := func(bytes float64) float64 { return math.Round(bytes / float64(c.Locks)) }
		got := map[string]float64{bytesOfOne: each(report().Bytes), bytesOfOther: each(ofServers)}
		if c.Rest == 0 {
			return got
		}
		for quiet := false; !quiet && *table != ""; { // what watchers still have to read
			time.Sleep(2 * time.Second)
			quiet = report().CPU < 100*time.Millisecond
		}
		if *table != "" && !c.Etcd {
			time.Sleep(40 * time.Second) // until lockfabric has found twice that nothing changes
		}
		report()
		written := s.written(t)
		time.Sleep(c.Rest)
		r := report()
		got[busy] = math.Round(1e4*r.CPU.Seconds()/c.Rest.Seconds()) / 100
		if !c.Etcd {
			written = s.written(t) - written
			got[writes] = math.Round(100*written*(ttlAtRest/3).Seconds()/c.Rest.Seconds()) / 100
			got[others] = math.Round(10*(r.Messages-written)*time.Minute.Seconds()/c.Rest.Seconds()) / 10
		}
		return got
	}
}

// written is how much was ever written to all streams of NATS.
func (s *servers) written(t testing.TB) (n float64) {
	t.Helper()
	if len(s.nats) == 0 {
		return 0
	}
	nc, err := nats.Connect(s.nats[0])
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	list := js.ListStreams(t.Context())
	for info := range list.Info() {
		n += float64(info.State.LastSeq)
	}
	if list.Err() != nil {
		t.Fatal(list.Err())
	}
	return n
}
