package coalesce

import "testing"

// The thin path: one process owns, another one acquires and releases over it.
func TestAcquireAndReleaseOverTheOwner(t *testing.T) {
	w := newWorld(t)
	o, p := w.process(RouterConfig{}).serve(), w.process(RouterConfig{Always: true})
	p.meet()
	before := p.engine.Stats()
	for range 3 {
		id := p.mustAcquire("k")
		if rec := o.p.record("k"); len(rec.Holders) != 1 || rec.Holders[0].ID != id {
			t.Fatalf("the record says %+v", rec)
		}
		p.mustRelease("k", id)
	}
	if rec := o.p.record("k"); rec != nil {
		t.Errorf("left behind: %+v", rec)
	}
	if after := p.engine.Stats(); after.Operations != before.Operations {
		t.Errorf("%d operations went directly", after.Operations-before.Operations)
	}
	if st := o.Stats(); st.Grants != 3 || st.Operations != 6 || st.UnderWay+st.Waiting != 0 {
		t.Errorf("%+v", st)
	}
}
