package jskv

import (
	"cmp"
	"context"
	"errors"
	"iter"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/lockfabric/lockfabric/internal/pause"
	"github.com/lockfabric/lockfabric/kv"
)

const (
	// groupKeys is how many keys one watcher serves at most. The server compares
	// the filters of a consumer with each other, all pairs.
	groupKeys = 256

	// maxGroups is how many watchers a hub has at most, but for the moment in which one replaces others. When that is
	// not enough, one watcher follows the whole bucket.
	maxGroups = 16
	maxKeys   = maxGroups * groupKeys

	// wideKeys is how few keys there must be to return from that. It is well
	// below maxKeys, or the hub would go back and forth.
	wideKeys = maxKeys / 2

	openRetry    = 100 * time.Millisecond
	maxOpenRetry = 5 * time.Second
)

// opening is one watcher to be opened.
type opening struct {
	keys        []string
	wholeBucket bool     // the whole bucket instead of keys
	absorb      []*group // closed once the new watcher is there
	again       bool     // replaces a broken one
	trials      int      // failures of the new group
	gone        bool     // the bucket was known to be gone when this was planned
	state       mark     // of the stream, as it was known then
}

// runOpener opens and closes watchers. Being one goroutine, it gathers what is
// registered while it opens a watcher into the next one.
func (h *Hub) runOpener(ctx context.Context) {
	for {
		o, wait := h.plan(time.Now())
		if o == nil {
			if !pause.Until(ctx, wait, h.wakeOpener) {
				return
			}
			continue
		}
		if ctx.Err() != nil {
			return
		}
		h.open(ctx, o)
	}
}

// plan returns the next watcher to open, or how long nothing needs to be done.
func (h *Hub) plan(now time.Time) (*opening, time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil, time.Hour
	}
	wait := h.closeEmpty(now)
	h.pending = slices.DeleteFunc(h.pending, func(k *watchedKey) bool { return k.dead || k.group != nil })
	if h.nextOpen.After(now) {
		return nil, min(wait, h.nextOpen.Sub(now))
	}

	o := h.planRepair(now, &wait)
	if o == nil {
		o = h.planPending()
	}
	if o != nil {
		o.gone, o.state = h.gone, h.state
		for _, g := range o.absorb {
			g.retiring = true
		}
	}
	return o, wait
}

// closeEmpty closes the groups that have had no keys for long, and broken ones
// without keys, and returns when to look again. Lock held.
func (h *Hub) closeEmpty(now time.Time) time.Duration {
	wait := time.Hour
	h.groups = slices.DeleteFunc(h.groups, func(g *group) bool {
		if g.live > 0 {
			return false
		}
		if left := g.emptySince.Add(groupIdle).Sub(now); left > 0 && !g.broken {
			wait = min(wait, left)
			return false
		}
		h.retire(g)
		return true
	})
	return wait
}

// planRepair returns the opening that replaces a broken group. Lock held.
func (h *Hub) planRepair(now time.Time, wait *time.Duration) *opening {
	for _, g := range h.groups {
		if !g.broken {
			continue
		}
		if left := g.retryAt.Sub(now); left > 0 {
			*wait = min(*wait, left)
			continue
		}
		o := &opening{wholeBucket: g.wholeBucket(), absorb: []*group{g}, again: true, trials: 1}
		if now.Sub(g.opened) <= groupProven {
			o.trials = g.failures + 1
		}
		if !o.wholeBucket {
			o.keys = h.liveKeys(g)
			if h.filterBytes(o.keys) > h.maxFilters() {
				// The server of the present connection takes smaller requests.
				for _, name := range o.keys {
					h.detach(h.keys[name])
					h.pending = append(h.pending, h.keys[name])
				}
				continue
			}
		}
		return o
	}
	return nil
}

// planPending returns the opening for keys that no group covers, or that the
// watcher of the whole bucket covers and need not any more. Lock held.
func (h *Hub) planPending() *opening {
	var wide *group
	groups := make([]*group, 0, len(h.groups))
	for _, g := range h.groups {
		if g.wholeBucket() {
			wide = g
		} else {
			groups = append(groups, g)
		}
	}
	if wide != nil && len(h.keys) < wideKeys {
		wide.retiring = true
	}
	candidates := make([]string, 0, len(h.pending))
	for _, k := range h.pending {
		candidates = append(candidates, k.name)
	}
	if wide != nil && wide.retiring {
		candidates = append(candidates, h.liveKeys(wide)...)
	}
	if len(candidates) == 0 {
		return nil
	}

	o := &opening{}
	size := 0
	room := func(keys, bytes int) bool {
		return len(o.keys)+keys <= groupKeys && size+bytes <= h.maxFilters()
	}
	if len(groups) >= maxGroups {
		first := h.filterBytes(candidates[:1]) // needs room, too
		slices.SortFunc(groups, func(a, b *group) int { return cmp.Compare(a.live, b.live) })
		for _, g := range groups {
			keys := h.liveKeys(g)
			bytes := h.filterBytes(keys)
			if !room(len(keys)+1, bytes+first) {
				break
			}
			o.keys = append(o.keys, keys...)
			size += bytes
			o.absorb = append(o.absorb, g)
		}
		if len(o.absorb) == 0 {
			// All are full, or the keys are so long that a group holds few of them: one watcher
			// of the whole bucket takes their place.
			return &opening{wholeBucket: true, absorb: slices.Clone(h.groups)}
		}
	}
	for _, key := range candidates {
		bytes := h.filterBytes([]string{key})
		if len(o.keys) > 0 && !room(1, bytes) {
			break
		}
		o.keys = append(o.keys, key)
		size += bytes
	}
	return o
}

// maxFilters is how many bytes of filters one request to open a watcher carries.
func (h *Hub) maxFilters() int { return int(max(h.bucket.nc.MaxPayload()/2, 4096)) }

// filterBytes is how many bytes these keys take as filters, with quotes and comma.
func (h *Hub) filterBytes(keys []string) int {
	n := 0
	for _, key := range keys {
		n += len(h.bucket.prefix) + len(key) + 3
	}
	return n
}

// keysOf yields the keys of a group that are still registered. Lock held.
func (h *Hub) keysOf(g *group) iter.Seq[*watchedKey] {
	return func(yield func(*watchedKey) bool) {
		if g.wholeBucket() {
			for _, k := range h.keys {
				if k.group == g && !yield(k) {
					return
				}
			}
		}
		for name := range g.filters {
			if k := h.keys[name]; k != nil && k.group == g && !yield(k) {
				return
			}
		}
	}
}

// liveKeys returns their names. Lock held.
func (h *Hub) liveKeys(g *group) []string {
	keys := make([]string, 0, g.live)
	for k := range h.keysOf(g) {
		keys = append(keys, k.name)
	}
	return keys
}

// open opens a watcher, moves its keys to it, and only then closes the groups
// it replaces, so that no key is ever without a watcher that it had.
func (h *Hub) open(ctx context.Context, o *opening) {
	g := &group{stopped: make(chan struct{}), failures: o.trials}
	filters := []string{jetstream.AllKeys}
	if !o.wholeBucket {
		g.filters = make(map[string]struct{}, len(o.keys))
		for _, key := range o.keys {
			g.filters[key] = struct{}{}
		}
		filters = slices.Clone(o.keys) // WatchFiltered writes into its argument
	}
	// The context lives as long as the watcher. The hub's own only aborts the opening; JetStream's request timeout of
	// 5 s bounds it. An opening that was given up may leave a consumer, which the server removes after 5 s.
	var wctx context.Context
	wctx, g.cancel = context.WithCancel(context.WithoutCancel(ctx))
	unhook := context.AfterFunc(ctx, g.cancel)
	watcher, err := h.bucket.kv.WatchFiltered(wctx, filters)
	unhook()
	if err != nil {
		g.cancel()
		h.openFailed(o, err)
		return
	}
	g.watcher, g.opened, g.checked = watcher, time.Now(), o.state
	h.adopt(g, o)
}

func (h *Hub) adopt(g *group, o *opening) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.done.Go(func() { h.follow(g) })
	if h.closed {
		h.retire(g)
		return
	}
	h.failures, h.nextOpen = 0, time.Time{}
	if o.gone { // an opening that had begun earlier would prove nothing
		h.gone = false
	}
	h.stats.LastError = nil
	h.stats.Opened++
	if o.again {
		h.stats.Reopened++
	}
	if g.wholeBucket() {
		for _, k := range h.keys {
			h.attach(k, g)
		}
	}
	for name := range g.filters {
		// The key may have been registered anew meanwhile, or have left.
		if k := h.keys[name]; k != nil {
			h.attach(k, g)
		}
	}
	if g.live == 0 {
		g.emptySince = g.opened
	}
	for _, old := range o.absorb {
		h.retire(old)
	}
	h.groups = slices.DeleteFunc(h.groups, func(g *group) bool { return g.retired })
	h.groups = append(h.groups, g)
}

// openFailed lets the groups that were to be replaced go on, and the poller care for the keys meanwhile.
func (h *Hub) openFailed(o *opening, err error) {
	h.mu.Lock()
	for _, g := range o.absorb {
		g.retiring = false
	}
	h.failures++
	h.nextOpen = time.Now().Add(backoff(h.failures))
	h.stats.OpenFailures++
	h.stats.LastError = err
	for _, k := range h.keys {
		if k.group == nil || k.group.broken {
			h.unwatched(k)
		}
	}
	h.mu.Unlock()
	if errors.Is(err, nats.ErrStreamNotFound) || errors.Is(err, jetstream.ErrStreamNotFound) {
		h.bucketGone()
	}
}

// unwatched has a key read that may be without a watcher. Lock held.
func (h *Hub) unwatched(k *watchedKey) {
	if k.version == 0 {
		h.schedule(k, 0)
	} else if time.Until(k.due) > 2*h.interval {
		h.schedule(k, h.interval)
	}
}

func backoff(n int) time.Duration { return pause.Near(pause.Doubled(openRetry, n-1, maxOpenRetry)) }

// Sweeps returns how often somebody has begun to collect dead entries in the fabric. Errors are those of a read.
func (b *Buckets) Sweeps(ctx context.Context) (uint64, error) {
	m, _, err := b.note(ctx, func(*meta) bool { return false })
	return m.Sweeps, err
}

// BeginSweep notes that the caller begins to collect dead entries, unless somebody else has since there were n such
// sweeps. It returns their number now. Errors are those of a write.
func (b *Buckets) BeginSweep(ctx context.Context, n uint64) (mine bool, now uint64, err error) {
	m, _, err := b.note(ctx, func(m *meta) bool {
		mine = m.Sweeps == n
		if mine {
			m.Sweeps++
		}
		return mine
	})
	return mine && err == nil, m.Sweeps, err
}

// Waits opens the bucket in which units of work that wait for long say what they hold, and creates it
// where that is allowed. It is kept in memory: what is lost with its servers is written again. Errors are
// those of Open; locks work without it.
func (b *Buckets) Waits(ctx context.Context) (*Bucket, error) {
	cfg, nc := b.cfg, b.Leases.nc
	cfg.Memory = true
	l := &link{clustered: nc.ConnectedClusterName() != ""}
	return openBucket(ctx, l, nc, b.Leases.js, cfg, kv.WaitsBucket(cfg.Fabric), 1, noFloor)
}
