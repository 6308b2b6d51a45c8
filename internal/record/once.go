package record

import (
	"time"
)

// onceRules are the rules of work that is done once: the holder runs it. If it fails, the next waiter
// runs. The first result ends that; it stays, and all later callers read it.
type onceRules struct{ baseRules }

// once is the body.
type once struct {
	result  Value
	by      string // the id that stored it, "" without a result
	seconds int    // least time that it stays, 0 = until it is deleted
}

// maxResult bounds a result, in bytes; its stored form is also at most a quarter of Limits.MaxBytes.
const maxResult = 64 << 10

func (r *Record) once() *once { return r.Body.(*once) }

func (onceRules) facts(r *Record, f *Facts) {
	o := r.once()
	f.Value, f.By, f.Retention = o.result, o.by, o.retention()
}

func (o *once) retention() time.Duration { return time.Duration(o.seconds) * time.Second }

func (onceRules) initBody(r *Record, _ *Op) { r.Body = new(once) }

func (onceRules) idle(r *Record) bool { return r.once().by == "" }

// outlived: a result stays for the time that was stored with it. Nothing writes the record meanwhile.
func (onceRules) outlived(r *Record, age time.Duration) bool {
	o := r.once()
	return o.seconds > 0 && age >= o.retention()
}

func (onceRules) verbs() *verbTable { return &onceVerbs }

var onceVerbs = verbTable{
	OpAcquire: {needEntry | needLife | waits, OpRelease, (*machine).run},
	OpTry:     {needEntry | needLife | waits, OpRelease, (*machine).run},
	OpFinish:  {needID | needHolder | mayN | needLife | proven | mustComplete, OpFinish, (*machine).finish},
	OpDelete:  {needLife, 0, (*machine).delete},
}

func (m *machine) run(op *Op) Result {
	switch {
	case m.once().by != "":
		return Result{Verdict: Finished}
	case m.Has(op.ID):
		return m.settled()
	case op.Verb == OpTry && m.oldestEntry().ID != "":
		return Result{Verdict: Held, Blocker: m.oldestEntry()}
	}
	return m.enqueue(op)
}

func (m *machine) finish(op *Op) Result {
	o := m.once()
	i := indexOf(m.Holders, op.Holder)
	holds := i >= 0 && m.Holders[i].Token == op.Token
	switch {
	case op.Fail && holds:
		m.removeAll(selection{id: op.Holder})
		return m.settled()
	case op.Fail, o.by == op.Holder:
		return Result{Verdict: Applied}
	case !holds:
		return Result{Verdict: NotHolder}
	}
	done := &once{result: Value{Set: true, Data: op.Value.Data}, by: op.Holder, seconds: op.N}
	if most := min(maxResult, m.lim.MaxBytes/4); len(op.Value.Data) > maxResult || done.bound(m) > m.lim.MaxBytes/4 {
		return Result{Verdict: TooLarge, Have: most}
	}
	m.Body, m.Holders, m.Waiters, m.size = done, nil, nil, -1
	return Result{Verdict: Applied}
}

func (onceRules) settle(m *machine) {
	if len(m.Holders) == 0 && len(m.Waiters) > 0 {
		m.grantHead(1)
		m.Holders[0].Token = 0
	}
}

func (onceRules) standing(r *Record, op *Op) State {
	switch o := r.once(); {
	case op.Life != r.Life:
		return State{Standing: Refused, Why: OtherLife}
	case op.Verb == OpFinish && o.by == op.Holder:
		return State{Standing: Granted}
	case op.Verb != OpFinish && o.by != "":
		return State{Standing: Refused, Why: Finished}
	}
	return r.entryState(op.ID)
}

func (onceRules) blockerOf(r *Record, op *Op) (Entry, bool) {
	if _, before, _ := r.Waiter(op.ID); before > 0 {
		return r.Waiters[before-1], true
	}
	e := r.oldestEntry()
	return e, e.ID != "" && e.ID != op.ID
}

func (o *once) fields(f *fields) {
	f.value(&o.result)
	f.id(`,"by":`, &o.by)
	f.count(`,"retention_s":`, &o.seconds)
}

func (onceRules) validate(d *decoder) error {
	switch o := d.rec.once(); {
	case o.result.Set != (o.by != ""), o.seconds > 0 && o.by == "":
		return d.fail("a result needs value or data, and by")
	case o.by != "" && len(d.rec.Holders)+len(d.rec.Waiters) > 0:
		return d.fail("nobody runs or waits where there is a result")
	case len(d.rec.Holders) > 1:
		return d.fail("only one runs")
	}
	return nil
}

func (o *once) clone() Body { return new(*o) }

// bound: a result has room, since all entries are removed when it is stored.
func (o *once) bound(*machine) int { return len(appendBody(nil, o)) }
