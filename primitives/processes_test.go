package primitives_test

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/lockfabric/lockfabric/fabric"
	"github.com/lockfabric/lockfabric/primitives"
)

var kills = flag.Int("election.kills", 4, "how often TestElectionOfProcesses kills or stops the leader")

// candidate is a process that campaigns for ever, and says while it leads "leads TERM TIME", by the host's clock.
func candidate(ctx context.Context, m *fabric.Manager, key string, say func(string, ...any)) error {
	e := primitives.NewElection(m, key)
	say("ready 0 0")
	return e.Run(ctx, []byte(os.Getenv("CANDIDATE")), func(ctx context.Context, l *primitives.Leadership) error {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			at := time.Now()
			if l.Err() != nil {
				return nil
			}
			say("leads %d %d", l.Term(), at.UnixNano())
			select {
			case <-tick.C:
			case <-ctx.Done():
				return nil
			}
		}
	})
}

// term is one term, as its leader told of it.
type term struct {
	leader      int
	term        uint64
	since, last int64 // when the leader said so, first and last
}

// Five processes are candidates, and whoever leads is killed, or stopped until the next one leads, in turn: terms
// rise strictly, and no leader believes that it leads after the next one has begun to. With -election.kills=20 for
// longer.
func TestElectionOfProcesses(t *testing.T) {
	t.Parallel()
	onSite(t, singleSite, func(t *testing.T, s *site) {
		m, key := s.manager(t), s.key(t)
		e := primitives.NewElection(m, key)
		said := make(chan struct {
			from int
			line string
		}, 1000)
		var all []*process
		start := func() {
			i := len(all)
			p := startProcess(t, s, "candidate", key, fmt.Sprint("CANDIDATE=", i))
			all = append(all, p)
			go func() {
				for line := range p.lines {
					said <- struct {
						from int
						line string
					}{i, line}
				}
				close(p.read)
			}()
		}
		for range 5 {
			start()
		}
		var terms []*term
		take := func(from int, line string) {
			var what string
			var n uint64
			var at int64
			if _, err := fmt.Sscan(line, &what, &n, &at); err != nil || what == "ready" {
				return
			}
			i := slices.IndexFunc(terms, func(x *term) bool { return x.term == n })
			if i < 0 {
				terms = append(terms, &term{leader: from, term: n, since: at, last: at})
				i = len(terms) - 1
			}
			if terms[i].leader != from {
				t.Errorf("term %d of two leaders, %d and %d", n, terms[i].leader, from)
			}
			terms[i].last = max(terms[i].last, at)
		}
		newest := uint64(0)
		resume := func() {}
		for i := range *kills {
			// The leader is asked for in the record, so that it is one who leads and not one who says so late.
			var leader primitives.Leader
			eventually(t, "a leader of a newer term", func() bool {
				for len(said) > 0 {
					w := <-said
					take(w.from, w.line)
				}
				var err error
				leader, err = e.Leader(waitContext(t))
				return err == nil && leader.Term > newest
			})
			newest = leader.Term
			resume()
			resume = func() {}
			var who int
			if _, err := fmt.Sscan(string(leader.Value), &who); err != nil {
				t.Fatalf("%v: %+v", err, leader)
			}
			if i%2 == 1 && all[who].stop() {
				resume = all[who].resume
				continue
			}
			all[who].killUnread()
			start()
		}
		eventually(t, "a leader at the end", func() bool {
			for len(said) > 0 {
				w := <-said
				take(w.from, w.line)
			}
			l, err := e.Leader(waitContext(t))
			return err == nil && l.Term > newest
		})
		resume()
		go func() {
			for _, p := range all {
				p.killUnread()
			}
			for _, p := range all {
				<-p.read
			}
			close(said)
		}()
		for w := range said {
			take(w.from, w.line)
		}
		slices.SortFunc(terms, func(a, b *term) int { return int(a.since - b.since) })
		for i, x := range terms[1:] {
			if was := terms[i]; x.term <= was.term || was.last >= x.since {
				t.Errorf("term %d since %d, while %d led in term %d until %d", x.term, x.since, was.leader, was.term, was.last)
			}
		}
		// Who is killed right after its grant has not said a word.
		if len(terms) <= *kills/2 {
			t.Errorf("%d leaders told of their terms, and %d were killed or stopped", len(terms), *kills)
		}
		t.Logf("%d terms", len(terms))
	})
}

// The bounded queue of the documentation: producers wait until it is not full and consumers until it is not
// empty, each in a process of its own. What is in it lies in a register, which checks the tokens.

const queueSize, queueItems = 3, 15

type boundedQueue struct {
	mu                *primitives.Mutex
	notEmpty, notFull *primitives.Cond
	items             *fabric.Register
}

func openQueue(ctx context.Context, m *fabric.Manager, nc *nats.Conn, key string) (*boundedQueue, error) {
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, err
	}
	bucket, err := js.CreateOrUpdateKeyValue(ctx, jetstream.KeyValueConfig{Bucket: "queue"})
	if err != nil {
		return nil, err
	}
	mu := primitives.NewMutex(m, key)
	return &boundedQueue{mu, primitives.NewCond(mu, "not-empty"), primitives.NewCond(mu, "not-full"), fabric.NewRegister(bucket, "items")}, nil
}

// change waits until the queue is as it has to be, changes it, and signals.
func (q *boundedQueue) change(ctx context.Context, wait, signal *primitives.Cond, ready func(items []int) bool, change func(items []int) []int) (err error) {
	l, err := q.mu.Lock(ctx)
	if err != nil {
		return err
	}
	defer func() {
		if l != nil {
			err = errors.Join(err, l.Release(ctx))
		}
	}()
	var items []int
	l, err = wait.WaitUntil(ctx, l, func(ctx context.Context) (bool, error) {
		items = nil
		stored, err := q.items.Read(ctx)
		if err == nil && stored.Value != nil {
			err = json.Unmarshal(stored.Value, &items)
		}
		return ready(items), err
	})
	if err != nil {
		return err
	}
	value, err := json.Marshal(change(items))
	if err != nil {
		return err
	}
	if _, err := q.items.Write(ctx, l.Token(), value); err != nil {
		return err
	}
	return signal.Signal(ctx, l)
}

func (q *boundedQueue) put(ctx context.Context, n int) error {
	return q.change(ctx, q.notFull, q.notEmpty,
		func(items []int) bool { return len(items) < queueSize },
		func(items []int) []int { return append(items, n) })
}

func (q *boundedQueue) take(ctx context.Context) (n int, err error) {
	err = q.change(ctx, q.notEmpty, q.notFull,
		func(items []int) bool { return len(items) > 0 },
		func(items []int) []int { n = items[0]; return items[1:] })
	return n, err
}

// withQueue opens the queue in a process of its own.
func withQueue(ctx context.Context, m *fabric.Manager, key string, fn func(q *boundedQueue) error) error {
	nc, err := nats.Connect(os.Getenv("LOCKFABRIC_TEST_URL"))
	if err != nil {
		return err
	}
	defer nc.Close()
	q, err := openQueue(ctx, m, nc, key)
	if err != nil {
		return err
	}
	return fn(q)
}

func producer(ctx context.Context, m *fabric.Manager, key string, say func(string, ...any)) error {
	return withQueue(ctx, m, key, func(q *boundedQueue) error {
		var first int
		if _, err := fmt.Sscan(os.Getenv("FIRST"), &first); err != nil {
			return err
		}
		for i := range queueItems {
			if err := q.put(ctx, first+i); err != nil {
				return err
			}
		}
		say("done")
		<-ctx.Done()
		return nil
	})
}

func consumer(ctx context.Context, m *fabric.Manager, key string, say func(string, ...any)) error {
	return withQueue(ctx, m, key, func(q *boundedQueue) error {
		for {
			n, err := q.take(ctx)
			if err != nil {
				return err
			}
			say("%d", n)
		}
	})
}

// Use 7: two producers and two consumers, each a process, and a bounded queue with not-empty and not-full.
// Everything arrives, once.
func TestBoundedQueueOfProcesses(t *testing.T) {
	t.Parallel()
	onSite(t, singleSite, func(t *testing.T, s *site) {
		m, key := s.manager(t), s.key(t)
		consumers := []*process{startProcess(t, s, "consumer", key, immortal), startProcess(t, s, "consumer", key, immortal)}
		waitInfo(t, m, key, "two consumers that wait", func(i fabric.Info) bool {
			return len(i.Conditions) == 1 && i.Conditions[0].Name == "not-empty" && len(i.Conditions[0].Waiters) == 2
		})
		producers := []*process{startProcess(t, s, "producer", key, "FIRST=100", immortal), startProcess(t, s, "producer", key, "FIRST=200", immortal)}
		got := map[string]int{}
		for len(got) < 2*queueItems {
			for _, c := range consumers {
				select {
				case line, ok := <-c.lines:
					if !ok {
						t.Fatal("a consumer has ended")
					}
					if got[line]++; got[line] > 1 {
						t.Errorf("%s arrived twice", line)
					}
				case <-time.After(5 * time.Millisecond):
				}
			}
			if t.Failed() {
				return
			}
		}
		for i := range queueItems {
			for _, first := range []int{100, 200} {
				if got[fmt.Sprint(first+i)] != 1 {
					t.Errorf("%d arrived %d times", first+i, got[fmt.Sprint(first+i)])
				}
			}
		}
		for _, p := range producers {
			if line := p.next(); line != "done" {
				t.Error(line)
			}
			p.end()
		}
		for _, c := range consumers {
			if rest := c.end(); len(rest) > 0 {
				t.Errorf("more arrived: %v", rest)
			}
		}
	})
}
