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

	// maxGroups is how many watchers a hub has at most, except for a moment while one replaces others. If that is
	// not enough, one watcher follows the whole bucket.
	maxGroups = 16
	maxKeys   = maxGroups * groupKeys

	// leaveWholeBucket is the number of keys below which the hub returns to groups. It is well
	// below maxKeys, so that the hub does not go back and forth.
	leaveWholeBucket = maxKeys / 2

	openRetry    = 100 * time.Millisecond
	maxOpenRetry = 5 * time.Second
)

// opening is one watcher to be opened.
type opening struct {
	keys        []string
	wholeBucket bool       // follows the whole bucket instead of keys
	replaces    []*group   // closed after the new watcher is open
	reopens     bool       // replaces a broken one
	trials      int        // group.failures of the new group
	gone        bool       // the bucket was known to be gone at planning
	state       streamMark // of the stream, as known at planning
}

// runOpener opens and closes watchers. It is one goroutine, so the keys that are
// registered while it opens a watcher go together into the next one.
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

// plan returns the next watcher to open, or how long there is nothing to do.
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
		o.gone, o.state = h.gone, h.streamState
		for _, g := range o.replaces {
			g.retiring = true
		}
	}
	return o, wait
}

// closeEmpty closes groups that had no keys for long, and broken groups
// without keys, and returns the time to the next check.
func (h *Hub) closeEmpty(now time.Time) time.Duration {
	wait := time.Hour
	h.groups = slices.DeleteFunc(h.groups, func(g *group) bool {
		if g.keyCount > 0 {
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

// planRepair returns an opening that replaces a broken group.
func (h *Hub) planRepair(now time.Time, wait *time.Duration) *opening {
	for _, g := range h.groups {
		if !g.broken {
			continue
		}
		if left := g.retryAt.Sub(now); left > 0 {
			*wait = min(*wait, left)
			continue
		}
		o := &opening{wholeBucket: g.wholeBucket(), replaces: []*group{g}, reopens: true, trials: 1}
		if now.Sub(g.opened) <= groupProven {
			o.trials = g.failures + 1
		}
		if !o.wholeBucket {
			o.keys = h.liveKeys(g)
			if h.filterBytes(o.keys) > h.maxFilters() {
				// The present connection's server accepts only smaller requests.
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

// planPending returns an opening for keys that no group covers, or that no longer need the watcher of the whole bucket.
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
	if wide != nil && len(h.keys) < leaveWholeBucket {
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
		first := h.filterBytes(candidates[:1]) // one new key must fit, too
		slices.SortFunc(groups, func(a, b *group) int { return cmp.Compare(a.keyCount, b.keyCount) })
		for _, g := range groups {
			keys := h.liveKeys(g)
			bytes := h.filterBytes(keys)
			if !room(len(keys)+1, bytes+first) {
				break
			}
			o.keys = append(o.keys, keys...)
			size += bytes
			o.replaces = append(o.replaces, g)
		}
		if len(o.replaces) == 0 {
			// All are full, or the keys are so long that a group has few of them: one watcher
			// of the whole bucket replaces them.
			return &opening{wholeBucket: true, replaces: slices.Clone(h.groups)}
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

// maxFilters returns how many bytes of filters one request to open a watcher may have.
func (h *Hub) maxFilters() int { return int(max(h.bucket.nc.MaxPayload()/2, 4096)) }

// filterBytes returns how many bytes these keys take as filters, with quotes and comma.
func (h *Hub) filterBytes(keys []string) int {
	n := 0
	for _, key := range keys {
		n += len(h.bucket.prefix) + len(key) + 3
	}
	return n
}

// keysOf yields the keys of a group that are still registered.
func (h *Hub) keysOf(g *group) iter.Seq[*watchedKey] {
	return func(yield func(*watchedKey) bool) {
		if g.wholeBucket() {
			for _, k := range h.keys {
				if k.group == g && !yield(k) {
					return
				}
			}
		}
		for name := range g.filters { // a group of one key must not cost as much as all keys of the hub
			if k := h.keys[name]; k != nil && k.group == g && !yield(k) {
				return
			}
		}
	}
}

// liveKeys returns the names of these keys.
func (h *Hub) liveKeys(g *group) []string {
	keys := make([]string, 0, g.keyCount)
	for k := range h.keysOf(g) {
		keys = append(keys, k.name)
	}
	return keys
}

// open opens a watcher, moves its keys to it, and closes the groups that it replaces only then.
// So no watched key is ever without a watcher.
func (h *Hub) open(ctx context.Context, o *opening) {
	g := &group{stopped: make(chan struct{}), failures: o.trials}
	filters := []string{jetstream.AllKeys}
	if !o.wholeBucket {
		g.filters = make(map[string]bool, len(o.keys))
		for _, key := range o.keys {
			g.filters[key] = true
		}
		filters = slices.Clone(o.keys) // WatchFiltered writes into its argument
	}
	// This context lives as long as the watcher. The hub's context only aborts the opening, which JetStream's request timeout
	// of 5 s bounds. An aborted opening may leave a consumer, which the server removes after 5 s.
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
	h.install(g, o)
}

func (h *Hub) install(g *group, o *opening) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.done.Go(func() { h.follow(g) })
	if h.closed {
		h.retire(g)
		return
	}
	h.failures, h.nextOpen = 0, time.Time{}
	if o.gone { // an opening planned earlier would prove nothing
		h.gone = false
	}
	h.opened++
	if o.reopens {
		h.reopened++
	}
	if g.wholeBucket() {
		for _, k := range h.keys {
			h.attach(k, g)
		}
	}
	for name := range g.filters {
		// The key may have been registered again meanwhile, or removed.
		if k := h.keys[name]; k != nil {
			h.attach(k, g)
		}
	}
	if g.keyCount == 0 {
		g.emptySince = g.opened
	}
	for _, old := range o.replaces {
		h.retire(old)
	}
	h.groups = slices.DeleteFunc(h.groups, func(g *group) bool { return g.retired })
	h.groups = append(h.groups, g)
}

// openFailed keeps the groups that were to be replaced, and has the poller read the keys meanwhile.
func (h *Hub) openFailed(o *opening, err error) {
	h.mu.Lock()
	for _, g := range o.replaces {
		g.retiring = false
	}
	h.failures++
	h.nextOpen = time.Now().Add(backoff(h.failures))
	h.openFailures++
	for _, k := range h.keys {
		switch {
		case k.group != nil && !k.group.broken:
		case k.version == 0:
			h.schedule(k, 0)
		case time.Until(k.due) > 2*h.interval:
			h.schedule(k, h.interval)
		}
	}
	h.mu.Unlock()
	if errors.Is(err, nats.ErrStreamNotFound) || errors.Is(err, jetstream.ErrStreamNotFound) {
		h.bucketGone()
	}
}

func backoff(n int) time.Duration { return pause.Near(pause.Doubled(openRetry, n-1, maxOpenRetry)) }

// Sweeps returns how many sweeps for dead entries have begun in the fabric. Errors are those of a read.
func (b *Buckets) Sweeps(ctx context.Context) (uint64, error) {
	m, _, err := b.note(ctx, func(*meta) bool { return false })
	return m.Sweeps, err
}

// BeginSweep notes that the caller begins a sweep for dead entries, unless another process has begun one since there were
// n sweeps. It returns their present number. Errors are those of a write.
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

// Waits opens the bucket in which long-waiting units of work list what they hold, and creates it if that is allowed. It
// is in memory: after a loss of its servers the units write again. Errors are those of Open; locks work without it.
func (b *Buckets) Waits(ctx context.Context) (*Bucket, error) {
	cfg, nc := b.cfg, b.Leases.nc
	cfg.Memory = true
	l := &link{clustered: nc.ConnectedClusterName() != ""}
	return openBucket(ctx, l, nc, b.Leases.js, cfg, kv.WaitsBucket(cfg.Fabric), 1, noFloor)
}
