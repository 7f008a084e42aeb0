from kfp import dsl

from components import images


@dsl.component(base_image=images.TRAIN, install_kfp_package=False)
def finish(status: dsl.PipelineTaskFinalStatus):
    """Say how the run ended, whatever happened before.

    Args:
        status: How the run ended, given by Kubeflow.
    """
    from components.platform.notify import notify

    outcome = f"the run {status.state.lower()}. {status.error_message or ''}"
    print(outcome)
    notify({"run": status.pipeline_job_resource_name, "state": status.state, "said": outcome})
