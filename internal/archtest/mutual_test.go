package archtest

import (
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestNoTwoFilesOfTheEngineUseEachOther keeps the engine readable from the bottom up, file by file.
func TestNoTwoFilesOfTheEngineUseEachOther(t *testing.T) {
	paths, err := filepath.Glob("../engine/*.go")
	if err != nil {
		t.Fatal(err)
	}
	texts := map[string]string{}
	for _, p := range paths {
		if text, err := os.ReadFile(p); err != nil {
			t.Fatal(err)
		} else if !strings.HasSuffix(p, "_test.go") {
			texts[filepath.Base(p)] = string(text)
		}
	}
	if len(texts) < 10 {
		t.Errorf("%d files were read", len(texts))
	}
	pairs, err := mutual(texts)
	if err != nil {
		t.Fatal(err)
	}
	for _, pair := range pairs {
		t.Errorf("%s: each uses what the other declares", pair)
	}
}

func TestMutualUseIsSeen(t *testing.T) {
	a := "package p\nimport \"sync\"\ntype a struct{ mu sync.Mutex; n int }\nfunc (x *a) up() { x.down() }\n"
	b := "package p\nfunc (x *a) down() { x.n-- }\n"
	pairs, err := mutual(map[string]string{"a.go": a, "b.go": b, "c.go": "package p\nfunc do(x *a) { x.up() }\n"})
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"a.go, b.go"}; !slices.Equal(pairs, want) {
		t.Errorf("got %q, want %q", pairs, want)
	}
}

// mutual returns the pairs of a package's files that each use functions, methods, fields, types, constants or
// variables that the other declares. Imported packages are left empty: what the compiler finds wrong then is no matter.
func mutual(texts map[string]string) (pairs []string, err error) {
	fset := token.NewFileSet()
	var files []*ast.File
	for name, text := range texts {
		f, err := parser.ParseFile(fset, name, text, parser.SkipObjectResolution)
		if err != nil {
			return nil, err
		}
		files = append(files, f)
	}
	info := &types.Info{Uses: map[*ast.Ident]types.Object{}}
	conf := types.Config{Importer: noImports{}, Error: func(error) {}}
	pkg, _ := conf.Check("p", fset, files, info)
	uses := map[string]bool{}
	for id, o := range info.Uses {
		v, isVar := o.(*types.Var)
		_, isFunc := o.(*types.Func)
		if o.Pkg() == pkg && (o.Parent() == pkg.Scope() || isFunc || isVar && v.IsField()) {
			uses[fset.Position(id.Pos()).Filename+", "+fset.Position(o.Pos()).Filename] = true
		}
	}
	for pair := range uses {
		if from, to, _ := strings.Cut(pair, ", "); from < to && uses[to+", "+from] {
			pairs = append(pairs, pair)
		}
	}
	slices.Sort(pairs)
	return pairs, nil
}

type noImports struct{}

func (noImports) Import(string) (*types.Package, error) { return nil, errors.New("not imported") }
