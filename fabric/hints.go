package fabric

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nuid"
)

// hints are messages over core NATS, from whoever lets a waiter in to that waiter's manager: they
// make it look at a record sooner than a watch would. Each manager has an id, which its leases are
// named after, and listens on a subject of its own. Nothing depends on them: see engine.Hints.
type hints struct {
	nc     *nats.Conn
	prefix string // of the subjects
	id     string // the manager's, a part of the ids of its leases
	leases atomic.Uint64
	works  atomic.Bool // a message of its own has come back
	sub    *nats.Subscription

	mu    sync.Mutex
	asked map[string][]chan string // who waits for an answer, by what was asked
}

// What the messages say, beside "<key> <revision>", which asks for a look at a record.
const (
	pokeText   = " deadlock" // look at deadlocks
	giveUpText = "give up "  // "<key> give up <id>": release this kept entry if nobody uses it
	unusedText = " unused "  // " unused <lease>": which kept entries does nobody use?
	answerText = " answer "  // " answer <id or lease> <text>"
)

// newHints starts listening. A connection that may not send or get messages works without.
func newHints(nc *nats.Conn, fabric string, m *Manager) *hints {
	h := &hints{nc: nc, prefix: "lf." + fabric + ".p.", id: nuid.Next(), asked: map[string][]chan string{}}
	var err error
	h.sub, err = nc.Subscribe(h.prefix+h.id, func(msg *nats.Msg) {
		data := string(msg.Data)
		key, text, _ := strings.Cut(data, " ")
		if key == "" {
			h.works.Store(true)
			switch {
			case data == pokeText:
				m.poked()
			case strings.HasPrefix(data, answerText):
				h.answered(data[len(answerText):])
			case strings.HasPrefix(data, unusedText):
				lease := data[len(unusedText):]
				h.answer(msg.Reply, lease, m.unused(lease))
			}
		} else if id, ok := strings.CutPrefix(text, giveUpText); ok {
			m.giveUp(key, id, func(text string) { h.answer(msg.Reply, id, text) })
		} else if rev, err := strconv.ParseUint(text, 10, 64); err == nil {
			m.look(key, rev)
		}
	})
	if err == nil {
		_ = nc.Publish(h.prefix+h.id, nil)
	}
	return h
}

// leaseID names a lease so that its process can be told.
func (h *hints) leaseID() string { return h.id + "-" + strconv.FormatUint(h.leases.Add(1), 10) }

// Work is that of engine.Hints.
func (h *hints) Work() bool { return h.works.Load() }

// Tell is that of engine.Hints.
func (h *hints) Tell(leases []string, key string, rev uint64) {
	told := map[string]bool{h.id: true}
	data := []byte(key + " " + strconv.FormatUint(rev, 10))
	for _, lease := range leases {
		if id, _, ok := strings.Cut(lease, "-"); ok && !told[id] {
			told[id] = true
			_ = h.nc.Publish(h.prefix+id, data)
		}
	}
}

// poke asks the process of a lease to look at deadlocks.
func (h *hints) poke(lease string) {
	if id, _, ok := strings.Cut(lease, "-"); ok {
		_ = h.nc.Publish(h.prefix+id, []byte(pokeText))
	}
}

// ask sends a question to the process of a lease, and returns what it answers about it, which is an id or the lease; ""
// where no answer comes in time, or none can.
func (h *hints) ask(ctx context.Context, lease, about, question string, limit time.Duration) string {
	id, _, ok := strings.Cut(lease, "-")
	if !ok || !h.Work() {
		return ""
	}
	c := make(chan string, 1)
	h.mu.Lock()
	h.asked[about] = append(h.asked[about], c)
	h.mu.Unlock()
	defer func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		if left := slices.DeleteFunc(h.asked[about], func(o chan string) bool { return o == c }); len(left) > 0 {
			h.asked[about] = left
		} else {
			delete(h.asked, about)
		}
	}()
	if h.nc.PublishRequest(h.prefix+id, h.prefix+h.id, []byte(question)) != nil {
		return ""
	}
	late := time.NewTimer(limit)
	defer late.Stop()
	select {
	case text := <-c:
		return text
	case <-late.C:
	case <-ctx.Done():
	}
	return ""
}

// answered passes an answer on to all who have asked for it.
func (h *hints) answered(text string) {
	about, answer, _ := strings.Cut(text, " ")
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, c := range h.asked[about] {
		select {
		case c <- answer:
		default: // it came twice
		}
	}
}

// answer sends an answer to a process that has asked, and to no other subject.
func (h *hints) answer(to, about, text string) {
	if id, ok := strings.CutPrefix(to, h.prefix); ok && text != "" && !strings.Contains(id, ".") {
		_ = h.nc.Publish(to, []byte(answerText+about+" "+text))
	}
}

func (h *hints) close() { _ = h.sub.Unsubscribe() } // of none is an error, too
