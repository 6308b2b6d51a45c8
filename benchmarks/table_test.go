package benchmarks

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lockfabric/lockfabric/fabric"
)

var (
	table = flag.String("table", "", "file that the measured table is written to; without it each cell is tried once")
	turn  = flag.Duration("turn", 200*time.Millisecond, "how long a turn of one cell is; each has five")
	only  = flag.String("systems", "", "the columns that are measured, separated by semicolons; all if empty")
	full  = flag.Bool("full", false, "measure three servers and what takes long, too")
	goOn  = flag.Bool("continue", false, "go on with the last run: leave out the rows that it has measured")
	limit = flag.Duration("limit", time.Minute, "how long a cell may take to start, and each of its turns; one that takes longer is a miss")
)

// maker makes what one client of a system does again and again.
type maker func(t testing.TB, s *servers, key string, clients int) round

// row is what is measured: by how many clients, of each system; nil = has none.
type row struct {
	what    string
	clients int
	own     bool // each client has a key of its own
	slow    bool // a round takes seconds: three are measured
	by      []maker
	counts  func(t testing.TB) map[string]float64 // instead of times; with servers of its own
}

// part is one table.
type part struct {
	what    string
	systems []string
	rows    []row
}

// section is what is measured with the same servers.
type section struct {
	title  string
	nodes  int
	synced bool
	parts  []part
}

var sections = []section{
	{"Synced to disk before it is acknowledged", 1, true, []part{primitive, contended}},
	{"Not synced (Redis: every second)", 1, false, []part{primitive, contended}},
	{"A client is killed", 1, true, []part{{"The next one has its mutex", []string{"lockfabric", "etcd", "Redis", "ZooKeeper"}, []row{
		{what: "0.1 s after another one waits; TTL 4 s", clients: 1, slow: true, by: []maker{ourKill, etcdKill, redisKill, zookeeperKill}},
	}}}},
	{"Many locks at rest", 1, false, []part{atRest}},
	{"Three servers, synced", 3, true, []part{contendedOnThree}},
	{"Three servers, not synced", 3, false, []part{contendedOnThree}},
}

var roads = []string{"floor", "direct", "automatic", "coalesced", "coalesced, turns", "posted", "etcd", "Redis", "ZooKeeper", "coalesced, posted", "direct, 4 shards", "posted, 4 shards"}

var (
	contended = part{"Many clients of a mutex", roads, []row{
		wanted(2, false), wanted(8, false), wanted(16, false), wanted(64, false), wanted(256, false), wanted(64, true), wanted(256, true),
	}}
	contendedOnThree = part{"Many clients of a mutex", roads, []row{wanted(1, true), wanted(8, false), wanted(64, false), wanted(64, true)}}
)

var primitive = part{
	"Primitives", []string{"floor", "lockfabric", "etcd", "Redis"}, []row{
		{what: "mutex: lock and unlock", clients: 1, by: []maker{floor, ourMutex, etcdMutex, redisMutex}},
		{what: "mutex, wanted by 2 clients", clients: 2, by: []maker{nil, ourMutex, etcdMutex, redisMutex}},
		{what: "mutex, wanted by 8", clients: 8, by: []maker{nil, ourMutex, etcdMutex, redisMutex}},
		{what: "mutex, wanted by 32", clients: 32, by: []maker{nil, ourMutex, etcdMutex, redisMutex}},
		{what: "reader-writer mutex, 10 clients, each tenth use writes", clients: 10, by: []maker{nil, ourRWMutex, etcdRWMutex, nil}},
		{what: "semaphore of 3: acquire and release", clients: 1, by: []maker{floor, ourSemaphore, nil, redisSemaphore}},
		{what: "semaphore of 3, wanted by 8", clients: 8, by: []maker{nil, ourSemaphore, nil, redisSemaphore}},
		{what: "election: campaign and resign", clients: 1, by: []maker{floor, ourElection, etcdElection, nil}},
		{what: "election, 8 candidates", clients: 8, by: []maker{nil, ourElection, etcdElection, nil}},
		{what: "barrier of 4, again and again", clients: 4, by: []maker{nil, ourBarrier, nil, nil}},
		{what: "double barrier of 4: enter and leave", clients: 4, by: []maker{nil, ourDoubleBarrier, etcdDoubleBarrier, nil}},
		{what: "one waits, another lets it go (latch; etcd: Barrier)", clients: 1, by: []maker{nil, ourLatch, etcdBarrier, nil}},
		{what: "once, the first time", clients: 1, by: []maker{floor, ourOnce, nil, nil}},
	},
}

// wanted is a row of many clients that lock and unlock one mutex, or one of their own each.
func wanted(clients int, own bool) row {
	on := fabric.WithRoad
	r := row{what: fmt.Sprintf("one mutex, %d clients", clients), clients: clients, own: own, by: []maker{
		nil, mutexWith(on(fabric.RoadDirect)), mutexWith(on(fabric.RoadAutomatic)), mutexWith(on(fabric.RoadCoalesced), fabric.WithoutTurns()),
		mutexWith(on(fabric.RoadCoalesced)), mutexWith(on(fabric.RoadAutomatic), fabric.WithPostedRelease()),
		etcdMutex, redisMutex, zookeeperMutex, nil, nil, nil,
	}}
	if own {
		r.what, r.by[0] = fmt.Sprintf("%d clients, each with a mutex of its own", clients), floor
		four := []fabric.Option{fabric.WithFabric("four"), fabric.WithShards(4)}
		r.by[9] = mutexWith(on(fabric.RoadCoalesced), fabric.WithPostedRelease())
		r.by[10] = mutexWith(append(four, on(fabric.RoadDirect))...)
		r.by[11] = mutexWith(append(four, on(fabric.RoadAutomatic), fabric.WithPostedRelease())...)
	}
	if own && clients == 1 {
		r.what = "one client"
	}
	return r
}

// crew is the clients of one cell, which end with the row, or with the cell if that does not come to an end.
type crew struct {
	testing.TB
	ends   []func()
	rounds []round
	done   int // rounds of each client so far
}

func (c *crew) Cleanup(end func()) { c.ends = append(c.ends, end) }

func (c *crew) end() {
	for _, end := range slices.Backward(c.ends) {
		end()
	}
	c.ends = nil
}

// run has each client do n rounds within the limit, and returns how long a round took: the time divided by all rounds.
func (c *crew) run(ctx context.Context, n int) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, *limit)
	defer cancel()
	errs := make(chan error, len(c.rounds)) // some systems' clients don't heed ctx: those stay behind
	began, done := time.Now(), c.done
	for _, r := range c.rounds {
		go func() {
			for k := range n {
				if err := r(ctx, done+k); err != nil {
					errs <- err
					return
				}
			}
			errs <- nil
		}()
	}
	for range c.rounds {
		select {
		case err := <-errs:
			if err != nil {
				return 0, err
			}
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
	c.done += n
	return time.Since(began) / time.Duration(n*len(c.rounds)), nil
}

// median of times.
func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}

// asked reports whether the system is to be measured.
func asked(system string) bool {
	return *only == "" || slices.Contains(strings.Split(*only, ";"), system)
}

// installed reports whether there is a server of the system.
func (s *servers) installed(system string) bool {
	return !(system == "Redis" && s.redis == nil || system == "ZooKeeper" && s.zookeeper == nil)
}

// plain makes a key of a text.
func plain(text string) string {
	return strings.Map(func(c rune) rune {
		if c == ' ' || c == ',' || c == ':' || c == ';' || c == '(' || c == ')' {
			return '-'
		}
		return c
	}, text)
}

// measure returns what a round of each system takes: the median of five turns, the systems in turn. A cell that
// fails, or does not come to an end, is left out from then on.
func measure(t *testing.T, s *servers, systems []string, r row) measurement {
	t.Helper()
	if *table == "" {
		r.clients = min(r.clients, 8)
	}
	least := 3 // rounds of each client in a turn
	turnsOfAll := 5
	if r.clients > 64 || r.slow {
		least = 1
	}
	if r.slow {
		turnsOfAll = 3
	}
	cells, each := measurement{Micros: map[string]float64{}, Missed: map[string]string{}}, make([]int, len(systems))
	crews, turns := make([]*crew, len(systems)), make([][]time.Duration, len(systems))
	run := func(i, n int) (took time.Duration, ok bool) {
		took, err := crews[i].run(t.Context(), n)
		if err != nil {
			if *table == "" {
				t.Fatalf("%s, %s: %v", r.what, systems[i], err)
			}
			cells.Missed[systems[i]] = err.Error()
			crews[i].end()
			crews[i], turns[i] = nil, nil
		}
		return took, err == nil
	}
	for i, make := range r.by {
		if make == nil || !s.installed(systems[i]) || !asked(systems[i]) {
			continue
		}
		c := &crew{TB: t}
		t.Cleanup(c.end)
		crews[i] = c
		for client := range r.clients {
			key := plain(r.what + systems[i])
			if r.own {
				key += fmt.Sprint("-", client)
			}
			c.rounds = append(c.rounds, make(c, s, key, r.clients))
		}
		took, ok := run(i, least) // opens what is opened once
		for n, tries := least, 0; ok; tries++ {
			cells.Micros[systems[i]], each[i] = micros(took), max(least, int(*turn/(took*time.Duration(r.clients))))
			if *table == "" || tries == 3 || tries > 0 && each[i] < 2*n {
				break
			}
			n = min(each[i], 8*n) // the first rounds of a crowd tell little of the rest
			took, ok = run(i, n)
		}
	}
	if *table == "" {
		return cells
	}
	for range turnsOfAll {
		for i, c := range crews {
			if c == nil {
				continue
			}
			if took, ok := run(i, each[i]); ok {
				turns[i] = append(turns[i], took)
			}
		}
	}
	for i, list := range turns {
		if list != nil {
			cells.Micros[systems[i]] = micros(median(list))
		}
	}
	return cells
}

// TestTable measures the rows and writes the page, after each row. What stays empty was not installed.
func TestTable(t *testing.T) {
	r := &results{Runs: []string{""}, Rows: map[string]measurement{}}
	if *table != "" {
		var err error
		if r, err = loadResults(*table, *goOn, machine()); err != nil {
			t.Fatal(err)
		}
	}
	for _, sec := range sections {
		if (sec.nodes > 1 || sec.parts[0].rows[0].slow) && !*full {
			continue
		}
		c := &crew{TB: t} // whose servers end with the section
		t.Cleanup(c.end)
		var s *servers
		for _, p := range sec.parts {
			for _, row := range p.rows {
				name := name(sec, p, row)
				if *goOn && r.measured(name) {
					continue
				}
				t.Run(row.what, func(t *testing.T) { // whose clients end with it
					var got measurement
					if row.counts != nil {
						got.Counts = row.counts(t)
					} else {
						if s == nil {
							s = start(c, sec.nodes, sec.synced)
						}
						got = measure(t, s, p.systems, row)
					}
					got.Run = len(r.Runs) - 1
					r.Rows[name] = got
					t.Log(got)
					if *table != "" {
						if err := r.save(*table); err != nil {
							t.Fatal(err)
						}
					}
				})
			}
		}
		c.end()
	}
}

// machine tells where and with what it was measured.
func machine() string {
	versions := []string{runtime.Version()}
	for _, name := range []string{"github.com/nats-io/nats-server/v2", "github.com/nats-io/nats.go", "go.etcd.io/etcd/server/v3", "github.com/go-redsync/redsync/v4", "github.com/go-zookeeper/zk"} {
		if out, err := exec.Command("go", "list", "-m", name).Output(); err == nil {
			versions = append(versions, strings.TrimSpace(string(out)))
		}
	}
	if out, err := exec.Command("redis-server", "--version").Output(); err == nil {
		if _, v, ok := strings.Cut(string(out), "v="); ok {
			versions = append(versions, "redis-server "+strings.Fields(v)[0])
		}
	}
	return fmt.Sprintf("%s, %s/%s with %d processors, which servers and clients share; load at the beginning %s, turns of %v. %s.",
		time.Now().Format(time.DateOnly), runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), load(), *turn, strings.Join(versions, ", "))
}

// load is that of the last minute.
func load() string {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "not known"
	}
	return strings.Fields(string(text))[0]
}

func TestMedian(t *testing.T) {
	if got := median([]time.Duration{5, 1, 9, 2, 3}); got != 3 {
		t.Error(got)
	}
}

// Rounds are divided out over all clients, and numbered for each.
func TestCrew(t *testing.T) {
	var mu sync.Mutex
	seen := map[int]int{}
	one := func(_ context.Context, n int) error {
		mu.Lock()
		defer mu.Unlock()
		seen[n]++
		return nil
	}
	c := crew{rounds: []round{one, one}}
	for range 2 {
		if _, err := c.run(t.Context(), 3); err != nil {
			t.Fatal(err)
		}
	}
	for n := range 6 {
		if seen[n] != 2 {
			t.Errorf("round %d was done %d times", n, seen[n])
		}
	}
}

// A client that does not end, and does not heed its context, costs its cell and not the table.
func TestCrewThatDoesNotEnd(t *testing.T) {
	defer func(d time.Duration) { *limit = d }(*limit)
	*limit = 10 * time.Millisecond
	ended, stuck := 0, make(chan struct{})
	c := crew{TB: t, rounds: []round{func(context.Context, int) error { <-stuck; return nil }}}
	c.Cleanup(func() { ended++; close(stuck) })
	if _, err := c.run(t.Context(), 1); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v, want that the limit was reached", err)
	}
	c.end()
	c.end()
	if ended != 1 {
		t.Errorf("the client was ended %d times", ended)
	}
}
