"""The result of a merge's comparison (merge_report.json, see merge_check.verify) as text."""


def print_report(report: dict) -> None:
    """Print what was compared, and the limits that apply."""
    weights = report["weights"]
    print(
        f"  weights: {weights['compared'] - weights['different']} of {weights['compared']} tensors equal base + adapter "
        f"rounded to bf16 ({weights['adapted']} adapted)"
    )
    if weights["different"]:
        return
    if report["agrees"] is None:
        print(
            "  logits not compared: the model does not fit into this machine's memory; evaluate the merged model on a larger "
            "machine"
        )
        return
    precision = report["precision"].replace("bfloat16", "bf16")
    references = {
        "bf16_base_and_adapter": f"{precision} base + adapter",
        "nf4_base_and_adapter": "NF4 base + adapter, as trained",
    }
    for key, name in references.items():
        if key in report:
            found = report[key]
            print(
                f"  against {name}: relative logit difference {found['logit_difference']:.4f} "
                f"(effect of the adapter: {found['adapter_moves_logits_by']:.4f}), agreement of {found['boxes']} boxes "
                f"{found['box_agreement']:.3f}, {found['same_answers']} of {report['images']} responses identical"
            )
    if not report["can_tell"]:
        print(
            "  note: the adapter changes the logits so little that they would not show its loss; the weights would show it"
        )
    print(
        f"  required: equal weights, and a relative logit difference from {precision} base + adapter of at most "
        f"{report['logit_tolerance']}. Boxes are only reported"
    )


def disagreement(report: dict) -> str:
    """What does not agree and what to do, for the error message."""
    weights = report["weights"]
    if weights["different"]:
        return (
            f"{weights['different']} of {weights['compared']} tensors differ, for example {weights['examples'][0]}. Check that "
            "nothing else writes to the base or to the adapter, and merge again"
        )
    found = report["bf16_base_and_adapter"]
    return (
        f"the weights do, but the relative logit difference is {found['logit_difference']:.4f}, and {report['logit_tolerance']} "
        "is allowed. Check whether the base has changed since training"
    )
