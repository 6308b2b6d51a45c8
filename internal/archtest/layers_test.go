package archtest

import "strings"

const (
	module     = "github.com/lockfabric/lockfabric"
	natsServer = "github.com/nats-io/nats-server"
	prometheus = "github.com/prometheus"
)

// layer is what one package may do.
type layer struct {
	// imports are the packages of this module that its own code may import. Its
	// tests may import these too, itself, and everything that is testOnly or
	// embedded.
	imports []string
	// testOnly marks support for tests: only tests and other support may import
	// it, and it may import testing and the test libraries.
	testOnly bool
	// program marks a main package, which nobody imports: package comment in
	// main.go is enough, and it may start an embedded server.
	program bool
	// server and serverInTests allow the NATS server, in its own code and in
	// its tests.
	server, serverInTests bool
	// prometheus allows the Prometheus client, which nobody is to link who does
	// not ask for it.
	prometheus bool
}

// layers is the table of all packages, by path under the module, lowest first.
// A new package gets a line here; a new edge is a decision about the design.
var layers = map[string]layer{
	"kv":                {},
	"internal/pause":    {},
	"internal/jskv":     {imports: []string{"kv", "internal/pause"}},
	"internal/record":   {},
	"internal/clock":    {},
	"internal/rtt":      {},
	"internal/lease":    {imports: []string{"kv", "internal/jskv", "internal/pause", "internal/clock", "internal/rtt"}},
	"internal/deadlock": {imports: []string{"internal/pause", "internal/record"}},
	"internal/engine":   {imports: []string{"kv", "internal/jskv", "internal/pause", "internal/record", "internal/lease", "internal/rtt"}},
	"coalesce": {imports: []string{
		"internal/engine", "kv", "internal/jskv", "internal/record", "internal/lease", "internal/clock", "internal/rtt",
	}, serverInTests: true},
	"fabric": {imports: []string{
		"coalesce",
		"internal/engine", "internal/deadlock", "kv", "internal/jskv", "internal/pause", "internal/record", "internal/lease", "internal/clock", "internal/rtt",
	}, serverInTests: true},
	"primitives": {imports: []string{"fabric"}},

	"fabric/fabricprom": {imports: []string{"fabric"}, prometheus: true},

	"embedded": {server: true, serverInTests: true},

	"internal/archtest":        {testOnly: true},
	"internal/test/faultproxy": {testOnly: true, serverInTests: true},
	"internal/test/testca":     {testOnly: true},
	"internal/test/sites":      {testOnly: true},
	"internal/test/testserver": {testOnly: true, server: true},
	"internal/test/cluster":    {testOnly: true, server: true},
	"internal/test/chaos":      {testOnly: true, imports: []string{"fabric", "kv", "primitives"}},
	"internal/test/explore":    {testOnly: true, imports: []string{"internal/record"}},

	// Parts of the command. The doctor reads what lies in the buckets, also where fabric
	// would refuse them; natscontext says how to reach a server and knows nothing of locks.
	"cmd/lockfabric/internal/doctor":      {imports: []string{"fabric", "kv", "internal/jskv", "internal/record", "internal/lease"}},
	"cmd/lockfabric/internal/natscontext": {},
	"cmd/lockfabric/internal/ui":          {imports: []string{"fabric", "internal/pause"}},

	"examples/internal/demo": {imports: []string{"fabric", "embedded"}},
}

// programs is what every main package under cmd and examples may import.
var programs = map[string]layer{
	// Who runs serve may want its metrics, and nobody links a program.
	"cmd": {program: true, prometheus: true, imports: []string{
		"primitives", "fabric", "fabric/fabricprom", "kv", "internal/pause", "internal/jskv", "internal/record", "internal/lease", "internal/clock", "embedded",
		"cmd/lockfabric/internal/doctor", "cmd/lockfabric/internal/natscontext", "cmd/lockfabric/internal/ui",
		// Servers that embedded doesn't offer: with accounts, or without JetStream.
	}, serverInTests: true},
	// An example shows what a reader can do, so it gets public packages only.
	"examples": {program: true, prometheus: true, imports: []string{
		"primitives", "fabric", "fabric/fabricprom", "kv", "embedded", "examples/internal/demo",
	}},
}

// testLibraries are modules and packages that don't belong in a program.
var testLibraries = []string{
	"testing",
	"go.uber.org/goleak",
	"pgregory.net/rapid",
	"github.com/anishathalye/porcupine",
	"go.yaml.in/yaml",
}

// layerOf finds the line of the table for a package.
func layerOf(pkg string) (layer, bool) {
	if l, ok := layers[pkg]; ok {
		return l, true
	}
	top, _, _ := strings.Cut(pkg, "/")
	l, ok := programs[top]
	return l, ok
}

// within says whether an import path is the package or module root, or below it.
func within(path, root string) bool {
	return path == root || strings.HasPrefix(path, root+"/")
}
