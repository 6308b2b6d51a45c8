package explore

import (
	"fmt"
	"strings"
	"testing"

	"github.com/lockfabric/lockfabric/internal/record"
)

// campaign asks to lead, with a value that begins with the client's lease.
func campaign() step {
	st := acquire(record.X)
	op := st.op
	st.op = func(k *client, id string) record.Op {
		o := op(k, id)
		o.Value = record.Value{Set: true, Data: o.Lease}
		return o
	}
	return st
}

// proclaim sets the leader's value.
func proclaim(value string) step {
	return step{
		name: "proclaim",
		op: func(k *client, id string) record.Op {
			lease := record.LeaseOf(id)
			return record.Op{Kind: record.KindLock, Verb: record.OpProclaim, ID: id, Lease: lease, Holder: k.hold, Token: k.token, Value: record.Value{Set: true, Data: lease + value}}
		},
		then: func(_ *state, k *client, _ *answer) int8 { return k.pc + 1 },
	}
}

func electionProgram(name string, f faults, clients ...[]step) program {
	p := lockProgram(name, f, clients...)
	p.each = func(s *state) string {
		if s.key.rec == nil {
			return ""
		}
		for i := range s.key.rec.Holders {
			if h := &s.key.rec.Holders[i]; !strings.HasPrefix(h.Value.Data, h.Lease()) {
				return fmt.Sprintf("%s leads with the value %q", h.ID, h.Value.Data)
			}
		}
		return ""
	}
	return p
}

func TestElection(t *testing.T) {
	leader := []step{campaign(), proclaim("1"), proclaim("2"), release()}
	short := []step{campaign(), proclaim("1"), release()}
	exploreAll(t, []program{
		electionProgram("two leaders", faults{lost: 1, late: 1, deaths: 1}, leader, short),
		electionProgram("three leaders", faults{late: 1, deaths: 1}, short, short, short),
		larger(electionProgram("two leaders, all faults", faults{lost: 1, late: 2, cancels: 1, deaths: 1}, leader, leader)),
	})
}
