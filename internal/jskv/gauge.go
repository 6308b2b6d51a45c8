package jskv

import (
	"cmp"
	"errors"
	"time"
)

const (
	sampled   = 256               // least number of writes in a turn
	tried     = 3                 // least number of answers in a turn; the answer to a batch counts for many writes
	enough    = 3                 // pairs of turns with the same result that decide
	measured  = 30 * time.Second  // how long a decision holds
	manyAlone = 8 * leastTogether // writes in a row without a batch after which there is no crowd any more
)

// gauge decides whether a bucket's writes go in batches. It measures, since a client can't see what the answer depends on:
// whether the server syncs each write. It begins with single writes, and tries batches only while enough writes
// are under way at a time. Both ways have turns, one after the other, and each pair of turns has a result. The result that
// comes up three times decides: a bad moment of the disk affects only one or two turns.
//
//	singles -> batches -> singles -> ... --three times a fifth faster--> batches, for 30 s, then turns again
//	                                     --else, few writes, or no answer--> singles, likewise
type gauge struct {
	on     bool // batches, not single writes
	turn   turn
	single time.Duration // time of a write in the last turn of single writes
	faster int           // pairs in which batches were faster
	slower int           // pairs in which they were not
	until  time.Time     // when turns begin again
	sparse int           // single writes answered since a crowd was under way
	lone   int           // single writes since the last batch
	lately time.Duration // time of the last batch
	size   int           // of the last batch
	back   time.Time     // when the last batch was answered
}

// turn is the measurement of one way.
type turn struct {
	last    time.Time // last answer in a crowd or to a batch, or first write after a pause; zero: none
	answers int
	writes  int
	spent   time.Duration // sum of the times from one answer to the next
}

// takes counts an answer for n writes. It returns the time of one write once there are enough writes, and 0 before.
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

// went counts n answered writes and, at the end of a turn, begins a turn of the other way.
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

// stop returns to single writes. Turns begin again after d.
func (g *gauge) stop(d time.Duration) { *g = gauge{until: time.Now().Add(d)} }

// wentAlone counts writes that did not find enough others for a batch.
func (g *gauge) wentAlone(n int) {
	if g.lone += n; g.on && g.lone > manyAlone {
		g.stop(time.Second)
	}
}

// aloneAnswered counts an answered single write; out is how many were under way. A server that syncs answers a whole crowd
// at once, so the last ones of a crowd find few others, and still count as part of it.
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

// begins notes a write that comes while none is under way. quiet is whether no batch was answered lately. A pause does not
// count as the server's time.
func (g *gauge) begins() (quiet bool) {
	now := time.Now()
	if now.Sub(g.turn.last) > longestGather {
		g.turn.last = now
	}
	return now.Sub(g.back) > longestGather // no writer has just come back from a batch
}

// togetherAnswered counts an answered batch of n.
func (g *gauge) togetherAnswered(n int, took time.Duration, err error) {
	switch {
	case !g.on:
	case errors.Is(err, ErrBusy):
		g.wentAlone(2 * leastTogether)
	case err != nil && g.back.IsZero():
		g.stop(measured)
	case err != nil: // a slow moment: the server does accept batches
		g.stop(time.Second)
	default:
		g.lone, g.lately, g.size, g.back = 0, took, n, time.Now()
		g.went(n)
	}
}
