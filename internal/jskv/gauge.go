package jskv

import (
	"cmp"
	"errors"
	"time"
)

const (
	sampled   = 256               // writes of a turn, at least
	tried     = 3                 // answers in a turn, at least: of batches each is that of many writes
	enough    = 3                 // pairs of turns that have the same outcome
	measured  = 30 * time.Second  // for how long the outcome counts
	manyAlone = 8 * leastTogether // writes in a row that found no batch: there is no crowd any more
)

// gauge decides by measuring whether a bucket's writes go in batches, since that depends on what a client can't
// see: whether the server syncs each write. Single writes, which is how it begins, are left only while enough of
// them are under way at a time. Both ways have turns, one after the other, and each pair of turns has an outcome. The one that
// comes up three times counts: a bad moment of the disk falls into one or two turns.
//
//	singles -> batches -> singles -> ... --three times a fifth faster--> batches, for 30 s, then turns again
//	                                     --else, few writes, or no answer--> singles, likewise
type gauge struct {
	on     bool // batches, not singles
	turn   turn
	single time.Duration // what a write took in the turn of singles before
	faster int           // pairs in which batches were
	slower int           // and in which they weren't
	until  time.Time     // when turns begin again
	sparse int           // single writes answered since a crowd was under way
	lone   int           // writes that went alone since the last batch
	lately time.Duration // by the last batch
	size   int           // of the last batch
	back   time.Time     // when it was answered
}

// turn is what one way has taken lately.
type turn struct {
	last    time.Time // answer in a crowd, or to a batch, or first write after a pause; zero: none
	answers int
	writes  int
	spent   time.Duration // from one's answer to the next one's
}

// takes counts an answer for n writes. It returns what one of them took, once they are enough, and 0 before.
func (t *turn) takes(n int) (cost time.Duration) {
	now := time.Now()
	if !t.last.IsZero() {
		t.answers, t.writes, t.spent = t.answers+1, t.writes+n, t.spent+now.Sub(t.last)
	}
	t.last = now
	if t.answers >= tried && t.writes >= sampled {
		cost = max(t.spent/time.Duration(t.writes), 1)
		*t = turn{last: now}
	}
	return cost
}

// went takes in that n writes are over, as it is decided, and lets the other way have its turn.
func (g *gauge) went(n int) {
	cost := g.turn.takes(n)
	if cost == 0 || time.Now().Before(g.until) {
		return
	}
	switch {
	case !g.on:
		g.single, g.lately = cost, cmp.Or(g.lately, 4*cost)
	case g.single == 0: // the first turn after a while
	case 5*cost <= 4*g.single:
		g.faster++
	default:
		g.slower++
	}
	if g.on = !g.on; g.faster == enough || g.slower == enough {
		g.on, g.until = g.faster == enough, time.Now().Add(measured)
		g.single, g.faster, g.slower = 0, 0, 0
	}
	g.turn, g.lone = turn{last: time.Now()}, 0
}

// stop goes back to single writes. Turns begin again after d.
func (g *gauge) stop(d time.Duration) { *g = gauge{until: time.Now().Add(d)} }

// wentAlone counts writes that did not find enough others for a batch.
func (g *gauge) wentAlone(n int) {
	if g.lone += n; g.on && g.lone > manyAlone {
		g.stop(time.Second)
	}
}

// aloneAnswered takes in that one of so many single writes under way is over. A server that syncs answers all of a crowd
// at once, so the last ones of these find few others, and count as the first ones do.
func (g *gauge) aloneAnswered(out int) {
	if g.sparse++; out >= leastTogether {
		g.sparse = 0
	}
	if g.sparse > leastTogether {
		g.turn.last = time.Time{}
		return
	}
	g.went(1)
}

// begins takes in that a write comes while none is under way. It reports whether nobody has written lately. A pause is not
// the server's time.
func (g *gauge) begins() (quiet bool) {
	now := time.Now()
	if now.Sub(g.turn.last) > longestGather {
		g.turn.last = now
	}
	return now.Sub(g.back) > longestGather // nobody comes back from a batch
}

// togetherAnswered takes in that a batch of n is over.
func (g *gauge) togetherAnswered(n int, took time.Duration, err error) {
	switch {
	case !g.on:
	case errors.Is(err, ErrBusy):
		g.wentAlone(2 * leastTogether)
	case err != nil && g.back.IsZero():
		g.stop(measured)
	case err != nil: // a slow moment: the server does take batches
		g.stop(time.Second)
	default:
		g.lone, g.lately, g.size, g.back = 0, took, n, time.Now()
		g.went(n)
	}
}
