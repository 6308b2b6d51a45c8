package fabric

import (
	"context"
	"slices"

	"github.com/lockfabric/lockfabric/internal/record"
)

// sharesIntents reports whether the set uses shared intents: only under a lease that is shared.
func (g *gathering) sharesIntents() bool {
	return g.m.cfg.linger > 0 && !g.req.ownIntents && !g.req.timing.limited()
}

// joinPins has levels that only announce use shared intents: those that are open at once, those
// that somebody else is taking when they are granted. Where there is none the level's own
// entry becomes it.
func (g *gathering) joinPins(ctx context.Context, sl *slot) error {
	if !g.sharesIntents() {
		return nil
	}
	taking := false
	for _, l := range g.levels {
		if l.base != record.None {
			continue
		}
		p, mine := sl.pin(l.enc, l.op.Mode)
		if !mine && !taking { // else two could wait for each other
			select {
			case <-p.done:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		if !mine && !l.join(p) && p.endIf(func() bool { return true }) {
			p, mine = sl.pin(l.enc, l.op.Mode)
		}
		if mine {
			l.taking, taking = p, true
			l.op.Meta = map[string]string{intentKey: sharedIntent}
		}
	}
	return nil
}

// join has the level use an intent, unless that was granted before one above it.
func (l *level) join(p *pin) bool {
	select {
	case <-p.done:
	default:
		return false
	}
	if p.hold == nil {
		return false
	}
	late := func(a *level) bool { return a.hold() == nil || a.hold().Token() > p.hold.Token() }
	if slices.ContainsFunc(l.above, late) || !p.join(l.set, l.unit) {
		return false
	}
	l.pin = p
	return true
}

// joinOpen has the level use an intent that is open already.
func (g *gathering) joinOpen(l *level) bool {
	if !g.sharesIntents() || l.base != record.None {
		return false
	}
	sl := l.set.slot
	sl.mu.Lock()
	p := sl.pins[pinKey{l.enc, record.IX}]
	if p == nil {
		p = sl.pins[pinKey{l.enc, l.op.Mode}]
	}
	sl.mu.Unlock()
	return p != nil && l.join(p)
}

// granted takes a grant over, as the level's own or for all who come after.
func (l *level) granted(h *Hold) {
	p := l.taking
	l.taking = nil
	if p != nil && p.open(h, l.set, l.unit) {
		l.pin = p
		return
	}
	l.lock = &Lock{h}
}

// failPins ends those that were not granted.
func (g *gathering) failPins() {
	for _, l := range g.levels {
		if l.taking != nil {
			l.taking.fail()
			l.taking = nil
		}
		l.op.Meta = l.req.metadata
	}
}
