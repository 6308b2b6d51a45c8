package explore

import (
	"fmt"

	"github.com/lockfabric/lockfabric/internal/record"
)

// commit applies the operations of messages in one write.
func (w *walk) commit(n *state, ms []message) (changed bool, violation string) {
	ops := make([]record.Op, len(ms))
	for i, m := range ms {
		ops[i] = *m.op
	}
	changed, violation = w.commitOps(n, ops)
	if violation == "" && changed && len(ms) == 1 && ms[0].told && !harmless(ms[0].op) {
		violation = "an operation whose client knows the outcome changed the record"
	}
	return changed, violation
}

func (w *walk) commitOps(n *state, ops []record.Op) (changed bool, violation string) {
	before := n.key
	next, results, changed, panicked := w.apply(before.rec, n.rev, ops)
	if w.results = results; panicked != nil {
		return false, fmt.Sprintf("panic: %v", panicked)
	}
	c := &change{before: before.rec, rev: n.rev, ops: ops, results: results, after: n, changed: changed}
	if changed {
		n.top += 2 // another key was written between
		n.rev = n.top
		n.key = nothing
		if !next.Idle() {
			rec, err := record.Decode(next.Append(nil))
			if err != nil {
				return true, fmt.Sprintf("the record can't be read: %v", err)
			}
			rec.Resolve(n.rev)
			n.key = marked(rec)
		}
	}
	if w.p.change != nil {
		violation = w.p.change(c)
	}
	if violation == "" && changed && len(ops) == 1 {
		violation = otherLife(c)
	}
	return changed, violation
}

// apply is record.Apply, which must not panic.
func (w *walk) apply(rec *record.Record, rev uint64, ops []record.Op) (next *record.Record, results []record.Result, changed bool, panicked any) {
	defer func() {
		if panicked = recover(); panicked != nil {
			results = make([]record.Result, len(ops))
		}
	}()
	next, results, changed = record.Apply(rec, rev, ops, w.p.lim)
	return next, results, changed, nil
}

// otherLife: what names its life changes no other one.
func otherLife(c *change) string {
	op, life := &c.ops[0], c.rev
	switch op.Verb {
	case record.OpArrive, record.OpArriveToAct, record.OpReset, record.OpEnter, record.OpCount, record.OpAdd, record.OpAwait, record.OpFinish, record.OpDelete:
	case record.OpAcquire:
		if op.Kind != record.KindOnce {
			return ""
		}
	default:
		return ""
	}
	if c.before != nil {
		life = c.before.Life
	}
	if op.Life != life {
		return fmt.Sprintf("%s %s of another life changed the record", op.Verb, op.ID)
	}
	return ""
}

// check is what every state has to pass.
func (w *walk) check(s *state) string {
	for i := range w.p.clients {
		k := &s.clients[i]
		if k.hold == "" {
			continue
		}
		e, ok := record.Entry{}, false
		if s.key.rec != nil {
			e, ok = s.key.rec.Holder(k.hold)
		}
		switch {
		case !ok:
			return fmt.Sprintf("%s was told that it holds %s, which is not in the record", leaseOf(i), k.hold)
		case k.token != 0 && k.op == nil && e.Token != k.token:
			return fmt.Sprintf("%s was told that the token of %s is %d, and it is %d", leaseOf(i), k.hold, k.token, e.Token)
		case k.mode != 0 && !e.Mode.Covers(k.mode):
			return fmt.Sprintf("%s was told that it holds %s in mode %s, and it is %s", leaseOf(i), k.hold, k.mode, e.Mode)
		case e.Permits < k.n:
			return fmt.Sprintf("%s was told that it has %d permits, and has %d", leaseOf(i), k.n, e.Permits)
		}
	}
	if w.p.each != nil {
		return w.p.each(s)
	}
	return ""
}

// atRest is what a state has to pass in which nothing more happens.
func (w *walk) atRest(s *state) string {
	if w.p.rest != nil {
		return w.p.rest(w.p, s)
	}
	if bad := allDone(w.p, s); bad != "" {
		return bad
	}
	if s.key.rec != nil {
		return "everybody is done, and the record is still there"
	}
	return ""
}

// allDone says which client can't go on.
func allDone(p *program, s *state) string {
	for i := range p.clients {
		if k := &s.clients[i]; k.phase != done && k.phase != lost {
			return fmt.Sprintf("%s can't go on, and nothing more happens", leaseOf(i))
		}
	}
	return ""
}
