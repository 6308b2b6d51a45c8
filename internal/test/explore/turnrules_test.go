package explore

import (
	"strings"
	"testing"
)

// turnPrograms are exhausted in CI, turnPrograms and largerTurns in the long form.
var turnPrograms = map[string]turnProgram{
	"two":               {rounds: []uint64{2, 1}},
	"two, a copy":       {rounds: []uint64{1, 1}, copies: 1},
	"two, one lost":     {rounds: []uint64{2, 1}, lost: 1},
	"two, a cancel":     {rounds: []uint64{2, 1}, cancels: 1},
	"two, a conversion": {rounds: []uint64{2, 1}, conversions: 1},
	"two, a death":      {rounds: []uint64{2, 1}, deaths: 1},
	"two, a removal":    {rounds: []uint64{2, 1}, removals: 1},
	"two, a revocation": {rounds: []uint64{2, 1}, revokes: 1},
	"three":             {rounds: []uint64{1, 1, 1}},
}

var largerTurns = map[string]turnProgram{
	"two, a copy twice": {rounds: []uint64{2, 1}, copies: 1},
	"two, twice":        {rounds: []uint64{2, 2}},
	"two, all faults":   {rounds: []uint64{1, 1}, copies: 1, lost: 1, cancels: 1, conversions: 1, deaths: 1},
	"three, a cancel":   {rounds: []uint64{1, 1, 1}, cancels: 1},
	"three, a death":    {rounds: []uint64{1, 1, 1}, deaths: 1},
	"three, revoked":    {rounds: []uint64{1, 1, 1}, revokes: 1},
	"three, a removal":  {rounds: []uint64{1, 1, 1}, removals: 1},
}

// TestTurns exhausts small programs of turns, with the real record.
func TestTurns(t *testing.T) {
	run := func(programs map[string]turnProgram, limit int) {
		for name, p := range programs {
			t.Run(name, func(t *testing.T) {
				exhausts(t, p.explore, limit)
			})
		}
	}
	switch {
	case raceDetector:
		run(turnPrograms, raceLimit)
	case *long:
		run(turnPrograms, longLimit)
		run(largerTurns, longLimit)
	default:
		run(turnPrograms, ciLimit)
	}
}

// takenOut says that the exploration finds what goes wrong without a rule.
func takenOut(t *testing.T, rule string, p turnProgram) {
	p.without = rule
	states, violation, _ := p.explore(ciLimit)
	if violation == "" {
		t.Fatalf("%s is not missed in %d states", rule, states)
	}
	t.Logf("%d states, %d steps: %s", states, strings.Count(violation, "\n"), violation[strings.LastIndex(violation, "\n")+1:])
}

func TestH2_AHandleIsInvalidBeforeItsRelease(t *testing.T) { takenOut(t, "H2", turnPrograms["two"]) }

func TestH3_ATurnIsOfOneWhoHeld(t *testing.T) { takenOut(t, "H3", turnPrograms["two, a cancel"]) }

func TestH4_DirectlyBehind(t *testing.T) { takenOut(t, "H4 predecessor", turnPrograms["three"]) }

func TestH4_TheLeaseIsValidNow(t *testing.T) { takenOut(t, "H4 lease", turnPrograms["two, a death"]) }

func TestH5_TheOwnerComparesTickets(t *testing.T) {
	takenOut(t, "H5 owner", largerTurns["two, a copy twice"])
}

func TestH5_AdvanceComparesTickets(t *testing.T) {
	takenOut(t, "H5 advance", largerTurns["two, a copy twice"])
}

func TestH6_WaitingIsOverBeforeACancel(t *testing.T) {
	takenOut(t, "H6", turnPrograms["two, a cancel"])
}

func TestH9_AHolderByTurnAdvancesBeforeItConverts(t *testing.T) {
	takenOut(t, "H9", turnPrograms["two, a conversion"])
}

func TestH12_ARemovalHitsNoWaiter(t *testing.T) {
	takenOut(t, "H12 removal", largerTurns["three, a removal"])
}

func TestH12_OneLetsGoAtMost(t *testing.T) { takenOut(t, "H12 release", largerTurns["three, revoked"]) }

func TestH16_GhostsAreReleased(t *testing.T) { takenOut(t, "H16", turnPrograms["two, a copy"]) }
