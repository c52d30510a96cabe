/* What PyTorch says of our files, where it is installed ($OFFDIAG_TORCH_PYTHON, or /usr/bin/python3, with torch and
 * torchvision); skipped with a word where not. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include "run_cli.h"

TestSuite(torch, .init = cli_setup, .fini = cli_teardown);

/* A tool of tools/ with arguments, separated by blanks, in the scratch directory's names. */
static void run_tool(const char *tool, const char *arguments) {
    const char *python = getenv("OFFDIAG_TORCH_PYTHON"), *root = getenv("OFFDIAG_SOURCE_ROOT");
    char command[4096];
    (void)snprintf(command, sizeof command, "'%s' '%s/tools/%s' %s", python ? python : "/usr/bin/python3",
                   root ? root : ".", tool, arguments);
    int state = system(command);
    cr_assert(WIFEXITED(state));
    if (WEXITSTATUS(state) == 77)
        cr_skip_test("PyTorch is not installed");
    cr_assert_eq(WEXITSTATUS(state), 0, "%s", command);
}

/* Strict keys, and the same features, for each encoder that torchvision has and each stem. */
Test(torch, loads_an_export_and_gives_the_same_features) {
    static const char *const runs[][2] = {{"resnet18", "--encoder resnet18 --stem cifar --image-size 16"},
                                          {"resnet34", "--encoder resnet34 --stem cifar --image-size 16"},
                                          {"resnet50", "--encoder resnet50 --stem cifar --image-size 16"},
                                          {"imagenet", "--encoder resnet18 --stem imagenet --image-size 48"},
                                          {"imagenet50", "--encoder resnet50 --stem imagenet --image-size 48"},
                                          {"pad2", "--encoder resnet18 --stem cifar-pad2 --image-size 16"}};
    for (size_t i = 0; i < sizeof runs / sizeof *runs; i++) {
        char more[256], arguments[2048];
        const char *run = runs[i][0];
        (void)snprintf(more, sizeof more,
                       "%s --steps 3 --eval-every 0 --batch 8 --knn-bank 8 --knn-queries 4 --knn-k 2", runs[i][1]);
        cli_result r = tiny_train(run, more);
        cli_expect(&r, 0, "");
        r = cli("export %s --out %s", in_scratch("%s", run), in_scratch("%s.safetensors", run));
        cli_expect(&r, 0, "");
        r = cli("embed %s --limit 8 --out %s --images %s", in_scratch("%s", run), in_scratch("%s-features.npy", run),
                in_scratch("%s-images.npy", run));
        cli_expect(&r, 0, "");
        (void)snprintf(arguments, sizeof arguments, "'%s' '%s' '%s' --tolerance 1e-5",
                       in_scratch("%s.safetensors", run), in_scratch("%s-images.npy", run),
                       in_scratch("%s-features.npy", run));
        run_tool("check_export.py", arguments);
    }
}

/* A linear classifier that PyTorch trains on embedded features is as good as ours. 64 test images: 4 points are 3 of
 * them. */
Test(torch, a_linear_probe_on_embedded_features_is_as_good) {
    char arguments[4096] = "";
    cli_result r = tiny_train("run", "--steps 60 --eval-every 0");
    cli_expect(&r, 0, "");
    r = cli("eval %s --protocol linear --epochs 60 --lr 0.3 --json", in_scratch("run"));
    cli_expect(&r, 0, "");
    spew(in_scratch("eval.json"), r.out, strlen(r.out));
    r = cli("embed %s --split train --out %s --labels %s", in_scratch("run"), in_scratch("0.npy"), in_scratch("1.npy"));
    cli_expect(&r, 0, "");
    r = cli("embed %s --out %s --labels %s", in_scratch("run"), in_scratch("2.npy"), in_scratch("3.npy"));
    cli_expect(&r, 0, "");
    (void)snprintf(arguments, sizeof arguments, "'%s' '%s' '%s' '%s' '%s' --tolerance 4", in_scratch("eval.json"),
                   in_scratch("0.npy"), in_scratch("1.npy"), in_scratch("2.npy"), in_scratch("3.npy"));
    run_tool("check_probe.py", arguments);
}

/* The study's copy in PyTorch makes torchvision's views. */
Test(torch, the_study_in_pytorch_augments_as_torchvision) {
    run_tool("peers/torch_study.py", "--check");
}
