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

// hints sends messages over core NATS: the process that grants a lock to a waiter notifies the waiter's manager, which
// then reads the record sooner than its watch would show the grant. Each manager has an id, which is part of the ids of
// its leases, and listens on its own subject. Nothing depends on these messages; see engine.Hints.
type hints struct {
	nc     *nats.Conn
	prefix string // prefix of the subjects
	id     string // id of the manager, which is part of the ids of its leases
	leases atomic.Uint64
	works  atomic.Bool // a message to itself has arrived
	sub    *nats.Subscription

	mu    sync.Mutex
	asked map[string][]chan string // who waits for an answer, by the id or lease that was asked about
}

// The texts of messages. Another message is "<key> <revision>", which asks the receiver to read a record.
const (
	pokeText   = " deadlock" // search for deadlocks
	giveUpText = "give up "  // "<key> give up <id>": release this kept entry if it is idle
	unusedText = " unused "  // " unused <lease>": which kept entries are idle?
	answerText = " answer "  // " answer <id or lease> <text>"
)

// newHints starts listening. If the connection may not send or receive these messages, the manager works without them.
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

// leaseID returns a new lease id, which contains the manager's id, so that others can send messages to it.
func (h *hints) leaseID() string { return h.id + "-" + strconv.FormatUint(h.leases.Add(1), 10) }

// Work implements engine.Hints.
func (h *hints) Work() bool { return h.works.Load() }

// Tell implements engine.Hints.
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

// poke asks the process of a lease to search for deadlocks.
func (h *hints) poke(lease string) {
	if id, _, ok := strings.Cut(lease, "-"); ok {
		_ = h.nc.Publish(h.prefix+id, []byte(pokeText))
	}
}

// ask sends a question to the process of a lease, about an id or a lease. It returns "" if no answer comes in time.
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

// answered delivers an answer to all who have asked for it.
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

// answer sends an answer to the process that asked, and never to a subject outside the fabric's.
func (h *hints) answer(to, about, text string) {
	if id, ok := strings.CutPrefix(to, h.prefix); ok && text != "" && !strings.Contains(id, ".") {
		_ = h.nc.Publish(to, []byte(answerText+about+" "+text))
	}
}

func (h *hints) close() { _ = h.sub.Unsubscribe() } // without a subscription it returns an error, which does not matter
