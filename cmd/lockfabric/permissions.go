package main

import (
	"cmp"
	"fmt"
	"io"
	"strings"

	"github.com/lockfabric/lockfabric/fabric"
)

type permissionsCmd struct {
	Role string `required:"" enum:"observer,client,coalescer,admin" help:"What the user is for: observer looks, client takes locks, coalescer carries out operations for clients, too, and admin makes the buckets, too."`
	As   string `enum:"config,nsc" default:"config" help:"Print it as a part of nats-server's configuration, or as arguments of nsc: config or nsc."`
}

// permissions is the JSON of permissions.
type permissions struct {
	Fabric    string   `json:"fabric"`
	Role      string   `json:"role"`
	Publish   []string `json:"publish"`   // subjects that the user may publish to
	Subscribe []string `json:"subscribe"` // subjects that the user may subscribe to
}

func (*permissionsCmd) Help() string {
	return "It needs no server. The fabric is that of --fabric. As configuration it goes with a user: { user: NAME, password: …, and then what is printed }. " +
		"With --inbox-prefix, answers come on subjects of that prefix; give every user another one, and no user can read the answers to others. " +
		"docs/security.md says what each role could do if it were hostile."
}

func (p *permissionsCmd) Run(c *cli, s *streams) error {
	all, err := fabric.Permissions(c.Fabric, fabric.Role(p.Role), cmp.Or(c.InboxPrefix, "_INBOX"))
	if err != nil {
		return err
	}
	v := permissions{Fabric: c.Fabric, Role: p.Role, Publish: []string{}, Subscribe: []string{}}
	for _, one := range all {
		if one.Subscribe {
			v.Subscribe = append(v.Subscribe, one.Subject)
		} else {
			v.Publish = append(v.Publish, one.Subject)
		}
	}
	if c.Output == "text" && p.As == "nsc" {
		_, err = fmt.Fprintf(s.out, "--allow-pub '%s' --allow-sub '%s'\n", strings.Join(v.Publish, ","), strings.Join(v.Subscribe, ","))
		return writeError(err)
	}
	return s.print(c.Output, v, func(w io.Writer) {
		fmt.Fprintf(w, "# Role %s of the fabric %q.\npermissions: {\n", p.Role, c.Fabric)
		for _, subscribe := range []bool{false, true} {
			fmt.Fprintf(w, "  %s: { allow: [\n", map[bool]string{false: "publish", true: "subscribe"}[subscribe])
			for _, one := range all {
				if one.Subscribe == subscribe {
					fmt.Fprintf(w, "    %q\t# %s\n", one.Subject, one.Why)
				}
			}
			fmt.Fprintln(w, "  ] }")
		}
		fmt.Fprintln(w, "}")
	})
}
