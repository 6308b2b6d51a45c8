package fabric

import (
	"strconv"
	"strings"
	"sync/atomic"

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
}

// pokeText is the message that asks for a look at deadlocks.
const pokeText = " deadlock"

// newHints starts listening; look is called for every hint, and poked when somebody asks for a look at deadlocks. A
// connection that may not send or get them works without.
func newHints(nc *nats.Conn, fabric string, look func(key string, rev uint64), poked func()) *hints {
	h := &hints{nc: nc, prefix: "lf." + fabric + ".p.", id: nuid.Next()}
	var err error
	h.sub, err = nc.Subscribe(h.prefix+h.id, func(m *nats.Msg) {
		key, text, _ := strings.Cut(string(m.Data), " ")
		if key == "" {
			if h.works.Store(true); string(m.Data) == pokeText {
				poked()
			}
			return
		}
		if rev, err := strconv.ParseUint(text, 10, 64); err == nil {
			look(key, rev)
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

func (h *hints) close() { _ = h.sub.Unsubscribe() } // of none is an error, too
