package record

import "testing"

// acting returns a site where the action of generation 1, of a, b and c, runs: c runs it.
func acting(t *testing.T) (s *site, a, b, c Op) {
	s = newSite(t)
	a, b, c = s.toAct("a.1", 3, 1), s.toAct("b.1", 3, 1), s.toAct("c.1", 3, 1)
	s.must(a)
	s.must(b)
	s.must(c)
	s.stands(Granted, 0, c)
	s.stands(Waiting, 0, a, b)
	if f := s.rec.Facts(); !f.Acting || f.Gen != 2 || f.Arrived != 0 || len(f.Ended) != 0 {
		t.Fatalf("%+v", f)
	}
	return s, a, b, c
}

// P8: while an action runs, its generation ends by trip, or with the actor; two actions never run at once.
func TestP8_OnlyWhoActsEndsAnAction(t *testing.T) {
	s, a, b, c := acting(t)
	one := func() {
		t.Helper()
		if len(s.rec.Holders) != 1 || s.rec.Holders[0].ID != "c.1" || s.rec.Facts().Ended != nil && s.rec.Facts().Ended[0].Gen == 1 {
			t.Fatalf("the action was ended: %s", s.rec.Append(nil))
		}
	}
	s.must(evict("a"))
	one()
	s.stands(Waiting, 0, a, b)
	s.must(undoOf(t, b))
	one()
	s.stands(Waiting, 0, b, undoOf(t, b))
	s.must(s.reset("x.1", 3, 2)) // it has no party
	one()
	if v := s.apply(s.reset("x.2", 3, 1)); v != Stale {
		t.Error(v)
	}
	one()
	// The next one fills, and acts only when this one has ended.
	var next []Op
	for _, id := range []string{"d.1", "e.1", "f.1"} {
		next = append(next, s.toAct(id, 3, 2))
		s.must(next[len(next)-1])
	}
	one()
	if f := s.rec.Facts(); f.Arrived != 3 || f.Gen != 2 {
		t.Errorf("%+v", f)
	}
	if v := s.apply(s.toAct("g.1", 3, 2)); v != Stale { // waits in its process
		t.Error(v)
	}
	s.must(s.trip("c.1", false))
	s.stands(Granted, 0, a, b, c, undoOf(t, b), next[2])
	s.stands(Waiting, 0, next[:2]...)
	// The actor dies: its generation is broken, and the next one forms.
	s.must(evict("f"))
	s.stands(Refused, Broken, next...)
	if f := s.rec.Facts(); f.Acting || f.Gen != 3 || f.Ended[1].Who != "f" {
		t.Errorf("%+v", f)
	}
}

// An action ends once, whatever retries come; after its loss there is nothing to end.
func TestBarrierTrip(t *testing.T) {
	s, a, b, _ := acting(t)
	ok, failed := s.trip("c.1", false), s.trip("c.1", true)
	other := ok
	other.Token++
	if v := s.apply(other); v != NotHolder {
		t.Error(v)
	}
	s.must(ok)
	s.must(ok)
	s.stands(Granted, 0, a, b)
	if s.must(failed); s.rec.Facts().Ended[0].Broken {
		t.Errorf("%+v", s.rec.Facts())
	}

	s, a, b, _ = acting(t)
	failed = s.trip("c.1", true)
	s.must(failed)
	s.must(failed)
	s.stands(Refused, Broken, a, b)
	if e := s.rec.Facts().Ended[0]; e.Why != WhyFailed || e.Who != "c.1" {
		t.Errorf("%+v", e)
	}
	if v := s.apply(s.trip("c.1", false)); v != Broken {
		t.Error(v)
	}
	if v := s.apply(s.trip("d.1", false)); v != NotHolder {
		t.Error(v)
	}
}

// While an action runs, early parties form a generation of their own. It breaks at once when one of
// them gives up, and loses parties that die.
func TestBarrierEarlyArrivals(t *testing.T) {
	s, a, b, c := acting(t)
	d, e := s.arrive("d.1", 3, 2), s.arrive("e.1", 3, 2)
	s.must(d)
	s.must(e)
	s.must(evict("d"))
	s.stands(Gone, 0, d)
	s.stands(Waiting, 0, e)
	s.must(undoOf(t, e))
	s.stands(Refused, Broken, e)
	f := s.arrive("f.1", 3, 3)
	s.must(f)
	s.must(s.reset("x.1", 3, 3))
	s.must(s.reset("x.1", 3, 3)) // again
	s.stands(Refused, Broken, f)
	s.must(s.trip("c.1", false))
	s.stands(Granted, 0, a, b, c)
	if got := s.rec.Facts(); got.Gen != 4 || len(got.Ended) != 3 || got.Ended[2].Gen != 1 || got.Ended[1].Why != WhyReset {
		t.Errorf("%+v", got)
	}
}
